"""Muon in Triton: nineteen launches for any number of weights and shapes.

    weights, gradients, average    float32 [M], the K values of the matrices first
    momentum   float32 [K]         exp_avg, exp_avg_sq   float32 [M - K]         corrections   float32 [2]
    learning_rate, inverse_scale   float32 []          skip   bool []

Launches: (1) momentum, and each block's sum of squares; (2) each matrix's Nesterov step over its norm, in fp16; (3 to
17) its orthogonalisation, see `newton_schulz`; (18) the weights that are Adam's; (19) those of the matrices. The last
two update the running average too. Where `skip` is set nothing of the above changes, whatever the gradients hold.

Source: see `muon`.  Reference: `muon.muon_step`.
Traffic: of a matrix 32 bytes per weight (12 + 10 + 10) beside those of the products, 40 with the average; of another
weight 28, 36 with the average. Sums are made in a fixed order, without atomics. Whole blocks of the arrays above move
16 bytes a thread.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_fast_kernels.checks import check_muon, check_scalar
from eco_fast_kernels.fused.blocks import load_block, store_block
from eco_fast_kernels.fused.newton_schulz import TiledMatrices, table_entry
from eco_fast_kernels.muon import MOMENTUM, SMALLEST_NORM, Matrices, MuonOptions, MuonTensors

VALUES = 2048  # of one program
WARPS = 4


@triton.jit
def _block(table, blocks, VALUES: tl.constexpr):
    """A program's matrix, its first value, the program's offsets from there, the matrix's size; are all inside it."""
    i_matrix = tl.load(blocks + tl.program_id(0) * 2).to(tl.int64)
    start = tl.load(blocks + tl.program_id(0) * 2 + 1) * VALUES
    numel = table_entry(table, i_matrix, 1).to(tl.int32)
    return i_matrix, table_entry(table, i_matrix, 0) * 4, start + tl.arange(0, VALUES), numel, start + VALUES <= numel


@triton.jit
def _gradient(gradients, o, numel, factor, clip_value, CLIP: tl.constexpr, MASKED: tl.constexpr):
    b_gradient = load_block(gradients, o, numel, MASKED) * factor
    if CLIP:
        b_gradient = tl.minimum(tl.maximum(b_gradient, -clip_value), clip_value)
    return b_gradient


@triton.jit
def _momentum(
    gradients, momentum, sums, o, numel, factor, clip_value, MOMENTUM: tl.constexpr, CLIP: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    b_gradient = _gradient(gradients, o, numel, factor, clip_value, CLIP, MASKED)
    b_momentum = MOMENTUM * load_block(momentum, o, numel, MASKED) + b_gradient
    store_block(momentum, o, b_momentum, numel, MASKED)
    b_step = b_gradient + MOMENTUM * b_momentum
    tl.store(sums + tl.program_id(0), tl.sum(b_step * b_step, axis=0))


@triton.jit
def momentum_kernel(
    gradients, momentum, table, blocks, sums, skip, inverse_scale, clip_value, MOMENTUM: tl.constexpr,
    CLIP: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    if tl.load(skip) == 0:
        _, first, o, numel, whole = _block(table, blocks, VALUES)
        factor = tl.load(inverse_scale)
        p_gradient, p_momentum = gradients + first, momentum + first
        if whole:
            _momentum(p_gradient, p_momentum, sums, o, numel, factor, clip_value, MOMENTUM, CLIP, False)
        else:
            _momentum(p_gradient, p_momentum, sums, o, numel, factor, clip_value, MOMENTUM, CLIP, True)


@triton.jit
def _norm(sums, i_first, numel, VALUES: tl.constexpr):
    """A matrix's norm, from the sums of its blocks, which follow one another."""
    parts = tl.cdiv(numel, VALUES)
    total = tl.zeros((128,), tl.float64)
    for first in range(0, parts, 128):
        o = first + tl.arange(0, 128)
        total += tl.load(sums + i_first + o, mask=o < parts, other=0.0).to(tl.float64)
    return tl.sqrt_rn(tl.sum(total, axis=0).to(tl.float32))


@triton.jit
def _places(table, i_matrix, o, TILE: tl.constexpr):
    """Where the values of a matrix lie among the tiles."""
    columns = table_entry(table, i_matrix, 2).to(tl.int32)
    row_step, column_step = table_entry(table, i_matrix, 4).to(tl.int32), table_entry(table, i_matrix, 5).to(tl.int32)
    return table_entry(table, i_matrix, 3) * (TILE * TILE) + (o // columns * row_step + o % columns * column_step)


@triton.jit
def _normalise(
    gradients, momentum, x, places, o, numel, factor, clip_value, norm, MOMENTUM: tl.constexpr, CLIP: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    b_gradient = _gradient(gradients, o, numel, factor, clip_value, CLIP, MASKED)
    b_step = b_gradient + MOMENTUM * load_block(momentum, o, numel, MASKED)
    tl.store(x + places, (b_step / norm).to(x.dtype.element_ty), mask=o < numel)


@triton.jit
def normalise_kernel(
    gradients, momentum, x, table, blocks, sums, skip, inverse_scale, clip_value, smallest_norm,
    MOMENTUM: tl.constexpr, CLIP: tl.constexpr, VALUES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    if tl.load(skip) == 0:
        i_matrix, first, o, numel, whole = _block(table, blocks, VALUES)
        factor = tl.load(inverse_scale)
        norm = tl.maximum(_norm(sums, table_entry(table, i_matrix, 9), numel, VALUES), smallest_norm)
        p_gradient, p_momentum = gradients + first, momentum + first
        places = _places(table, i_matrix, o, TILE)
        if whole:
            _normalise(
                p_gradient, p_momentum, x, places, o, numel, factor, clip_value, norm, MOMENTUM, CLIP, False
            )  # fmt: skip
        else:
            _normalise(
                p_gradient, p_momentum, x, places, o, numel, factor, clip_value, norm, MOMENTUM, CLIP, True
            )  # fmt: skip


@triton.jit
def _average(average, b_weight, o, numel, one_minus_decay, MASKED: tl.constexpr):
    b_average = load_block(average, o, numel, MASKED)
    store_block(average, o, b_average + one_minus_decay * (b_weight - b_average), numel, MASKED)


@triton.jit
def _correction(corrections, i_moment: tl.constexpr, beta, one_minus_beta):
    return tl.load(corrections + i_moment) * beta + one_minus_beta


@triton.jit
def _adam(
    weights, gradients, average, exp_avg, exp_avg_sq, o, numel, factor, clip_value, rate, first, second, beta1, beta2,
    one_minus_beta1, one_minus_beta2, epsilon, weight_decay, one_minus_decay, AVERAGE: tl.constexpr,
    CLIP: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    b_gradient = _gradient(gradients, o, numel, factor, clip_value, CLIP, MASKED)
    b_m = load_block(exp_avg, o, numel, MASKED) * beta1 + b_gradient * one_minus_beta1
    b_v = load_block(exp_avg_sq, o, numel, MASKED) * beta2 + b_gradient * b_gradient * one_minus_beta2
    store_block(exp_avg, o, b_m, numel, MASKED)
    store_block(exp_avg_sq, o, b_v, numel, MASKED)
    b_weight = load_block(weights, o, numel, MASKED)
    b_root = tl.sqrt_rn(tl.div_rn(b_v, second)) + epsilon
    b_weight -= rate * (tl.div_rn(tl.div_rn(b_m, first), b_root) + weight_decay * b_weight)
    store_block(weights, o, b_weight, numel, MASKED)
    if AVERAGE:
        _average(average, b_weight, o, numel, one_minus_decay, MASKED)


@triton.jit
def adam_kernel(
    weights, gradients, average, exp_avg, exp_avg_sq, corrections, skip, inverse_scale, learning_rate, numel,
    clip_value, adam_factor, beta1, beta2, one_minus_beta1, one_minus_beta2, epsilon, weight_decay, one_minus_decay,
    AVERAGE: tl.constexpr, CLIP: tl.constexpr, VALUES: tl.constexpr,
):  # fmt: skip
    if tl.load(skip) == 0:
        start = tl.program_id(0) * VALUES
        o = start + tl.arange(0, VALUES)
        factor, rate = tl.load(inverse_scale), tl.load(learning_rate) * adam_factor
        first = _correction(corrections, 0, beta1, one_minus_beta1)
        second = _correction(corrections, 1, beta2, one_minus_beta2)
        if start + VALUES <= numel:
            _adam(
                weights, gradients, average, exp_avg, exp_avg_sq, o, numel, factor, clip_value, rate, first, second,
                beta1, beta2, one_minus_beta1, one_minus_beta2, epsilon, weight_decay, one_minus_decay, AVERAGE, CLIP,
                False,
            )  # fmt: skip
        else:
            _adam(
                weights, gradients, average, exp_avg, exp_avg_sq, o, numel, factor, clip_value, rate, first, second,
                beta1, beta2, one_minus_beta1, one_minus_beta2, epsilon, weight_decay, one_minus_decay, AVERAGE, CLIP,
                True,
            )  # fmt: skip


@triton.jit
def _move(
    weights, average, b_update, o, numel, rate, weight_decay, one_minus_decay, AVERAGE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    b_weight = load_block(weights, o, numel, MASKED)
    b_weight -= rate * (b_update + weight_decay * b_weight)
    store_block(weights, o, b_weight, numel, MASKED)
    if AVERAGE:
        _average(average, b_weight, o, numel, one_minus_decay, MASKED)


@triton.jit
def move_kernel(
    weights, average, orthogonal, growths, corrections, table, blocks, skip, learning_rate, beta1, beta2,
    one_minus_beta1, one_minus_beta2, weight_decay, one_minus_decay, AVERAGE: tl.constexpr, VALUES: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    if tl.load(skip) == 0:
        i_matrix, first, o, numel, whole = _block(table, blocks, VALUES)
        rate = tl.load(learning_rate)
        b_update = tl.load(orthogonal + _places(table, i_matrix, o, TILE), mask=o < numel, other=0.0).to(tl.float32)
        b_update *= tl.load(growths + i_matrix)
        p_weight, p_average = weights + first, average + first
        if whole:
            _move(p_weight, p_average, b_update, o, numel, rate, weight_decay, one_minus_decay, AVERAGE, False)
        else:
            _move(p_weight, p_average, b_update, o, numel, rate, weight_decay, one_minus_decay, AVERAGE, True)
        if tl.program_id(0) == 0:  # nobody reads them in this launch
            tl.store(corrections, _correction(corrections, 0, beta1, one_minus_beta1))
            tl.store(corrections + 1, _correction(corrections, 1, beta2, one_minus_beta2))


class MuonPlan:
    """Muon for one set of weights: everything that does not change from step to step, made once.

    The addresses are taken here and never again: fill the tensors in place, or make another plan.

    Args:
        tensors: on a GPU.
        matrices: how the first values of `tensors` lie; at least one.
        options: the constants of the formula.

    Raises:
        ValueError: tensors that do not fit together, or bad dtypes, strides, devices or places.
    """

    def __init__(self, tensors: MuonTensors, matrices: Sequence[Matrices], options: MuonOptions) -> None:
        check_muon(tensors, matrices)
        self._tensors, self._options = tensors, options
        self._tiled = TiledMatrices(matrices, VALUES, tensors.weights.device)
        growths = [one.growth for one in matrices for _ in range(one.number)]
        self._growths = torch.tensor(growths, device=tensors.weights.device)
        self._sums = torch.empty(len(self._tiled.blocks), device=tensors.weights.device)

    def step(self, learning_rate: Tensor, skip: Tensor, inverse_scale: Tensor) -> None:
        """Enqueue one update: its launches and nothing else, so that a CUDA graph may record it.

        The first step of a process compiles the kernels, so make one before recording; with `skip` set it changes
        nothing.

        Args:
            learning_rate: float32 [], of the matrices.
            skip: bool []; where true every bit stays as it is.
            inverse_scale: float32 [], undoes a gradient scaler's factor.

        Raises:
            ValueError: one of them has another dtype, shape or device.
        """
        for name, value in (("learning_rate", learning_rate), ("inverse_scale", inverse_scale)):
            check_scalar("Muon", name, value, torch.float32, self._sums)
        check_scalar("Muon", "skip", skip, torch.bool, self._sums)
        weights, gradients, average, momentum, exp_avg, exp_avg_sq, corrections = self._tensors
        tiled, options, size = self._tiled, self._options, momentum.numel()
        lists, grid = (tiled.table, tiled.blocks), (len(tiled.blocks),)
        clip_value, beta1, beta2 = options.clip_value or 0.0, options.beta1, options.beta2
        betas = beta1, beta2, 1 - beta1, 1 - beta2
        clipped = {"CLIP": options.clip_value is not None, "VALUES": VALUES, "num_warps": WARPS}
        averaged = {"AVERAGE": average is not None, "VALUES": VALUES, "num_warps": WARPS}
        average = weights if average is None else average  # which no program then touches
        momentum_kernel[grid](
            gradients, momentum, *lists, self._sums, skip, inverse_scale, clip_value, MOMENTUM=MOMENTUM, **clipped
        )
        normalise_kernel[grid](
            gradients, momentum, tiled.x, *lists, self._sums, skip, inverse_scale, clip_value, SMALLEST_NORM,
            MOMENTUM=MOMENTUM, TILE=tiled.tiling.side, **clipped,
        )  # fmt: skip
        tiled.orthogonalise()
        adam_kernel[(triton.cdiv(exp_avg.numel(), VALUES),)](
            weights[size:], gradients[size:], average[size:], exp_avg, exp_avg_sq, corrections, skip, inverse_scale,
            learning_rate, exp_avg.numel(), clip_value, options.adam_factor, *betas, options.epsilon,
            options.weight_decay, 1 - options.average_decay, **clipped, AVERAGE=averaged["AVERAGE"],
        )  # fmt: skip
        move_kernel[grid](
            weights, average, tiled.result, self._growths, corrections, *lists, skip, learning_rate, *betas,
            options.weight_decay, 1 - options.average_decay, TILE=tiled.tiling.side, **averaged,
        )  # fmt: skip
