"""Multi-tensor LAMB, in Triton: two launches for any number of tensors that stay where they are.

Per tensor p with gradient g, after g = clip(g * inverse_scale, +-clip_value):

    m = b1*m + (1-b1)*g,  v = b2*v + (1-b2)*g*g,  u = m / (sqrt(v) + epsilon) + weight_decay*p
    p -= learning_rate * min(|p|, norm_clamp) / |u| * u       (ratio 1 where either norm is 0)

    parameters, gradients, exp_avg, exp_avg_sq, average    float32, dense, of any shape; all of a tensor's in one layout
    learning_rate, inverse_scale   float32 []          skip   bool []

Launches: (1) moments, and each chunk's sums of p**2 and u**2; (2) the chunk sums of a tensor give its trust ratio;
weights, and their running average. Where `skip` is set, neither changes anything, whatever the gradients hold.

Source: You et al., ICLR 2020, in the form of `torch_optimizer.Lamb` with the weight norm clamped, as the authors of ECO
train.  Reference: `reference.lamb_step`.
Traffic: 40 bytes per weight (24 + 16), 48 with the average. 28 (36) are compulsory; the rest is read again after the
norms. Sums are made in a fixed order, without atomics. All arrays are read and written 16 bytes a thread where all
addresses are multiples of 16.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_fast_kernels.checks import check_lamb, check_scalar
from eco_fast_kernels.fused.blocks import load_block, store_block
from eco_fast_kernels.reference import LambOptions

CHUNK = 32768  # weights of one program
BLOCK = 1024
TABLE_COLUMNS = tl.constexpr(6)  # of the table: four addresses, the average's, the number of weights
TABLE_ALIGNMENT = 16  # bytes


@triton.jit
def _address(table, i_tensor, column: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(table + i_tensor * TABLE_COLUMNS + column).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _chunk(table, chunks, i_chunk, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """A chunk's tensor and place in it; its offsets, whole blocks and whether more follows; the tensor's size."""
    i_tensor = tl.load(chunks + i_chunk * 2).to(tl.int64)
    i_part = tl.load(chunks + i_chunk * 2 + 1)
    start = i_part.to(tl.int64) * CHUNK
    numel = tl.load(table + i_tensor * TABLE_COLUMNS + 5)
    length = tl.minimum(CHUNK, numel - start)
    whole = length // BLOCK
    return i_tensor, i_part, start + tl.arange(0, BLOCK), whole, whole * BLOCK < length, numel


@triton.jit
def _update(p, m, v, epsilon, weight_decay):
    return tl.div_rn(m, tl.sqrt_rn(v) + epsilon) + weight_decay * p


@triton.jit
def _moments(
    table,
    i_tensor,
    o,
    numel,
    factor,
    beta1,
    beta2,
    one_minus_beta1,
    one_minus_beta2,
    epsilon,
    weight_decay,
    clip_value,
    CLIP: tl.constexpr,
    ALIGNED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Update m and v of one block; returns p**2 and u**2."""
    p_exp_avg = _address(table, i_tensor, 2, ALIGNED)
    p_exp_avg_sq = _address(table, i_tensor, 3, ALIGNED)
    b_gradient = load_block(_address(table, i_tensor, 1, ALIGNED), o, numel, MASKED) * factor
    if CLIP:
        b_gradient = tl.minimum(tl.maximum(b_gradient, -clip_value), clip_value)
    b_parameter = load_block(_address(table, i_tensor, 0, ALIGNED), o, numel, MASKED)
    b_m = load_block(p_exp_avg, o, numel, MASKED) * beta1 + b_gradient * one_minus_beta1
    b_v = load_block(p_exp_avg_sq, o, numel, MASKED) * beta2 + b_gradient * b_gradient * one_minus_beta2
    store_block(p_exp_avg, o, b_m, numel, MASKED)
    store_block(p_exp_avg_sq, o, b_v, numel, MASKED)
    b_update = _update(b_parameter, b_m, b_v, epsilon, weight_decay)
    return b_parameter * b_parameter, b_update * b_update


@triton.jit
def moments_kernel(
    table,
    chunks,
    sums,
    skip,
    inverse_scale,
    beta1,
    beta2,
    one_minus_beta1,
    one_minus_beta2,
    epsilon,
    weight_decay,
    clip_value,
    CLIP: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_chunk = tl.program_id(0)
    if tl.load(skip) == 0:
        i_tensor, _, o, whole, more, numel = _chunk(table, chunks, i_chunk, CHUNK, BLOCK)
        factor = tl.load(inverse_scale)
        parameter_sum = tl.zeros((BLOCK,), tl.float32)
        update_sum = tl.zeros((BLOCK,), tl.float32)
        for index in range(whole):
            b_parameter, b_update = _moments(
                table, i_tensor, o + index * BLOCK, numel, factor, beta1, beta2, one_minus_beta1, one_minus_beta2,
                epsilon, weight_decay, clip_value, CLIP, ALIGNED, False,
            )  # fmt: skip
            parameter_sum += b_parameter
            update_sum += b_update
        if more:
            b_parameter, b_update = _moments(
                table, i_tensor, o + whole * BLOCK, numel, factor, beta1, beta2, one_minus_beta1, one_minus_beta2,
                epsilon, weight_decay, clip_value, CLIP, ALIGNED, True,
            )  # fmt: skip
            parameter_sum += b_parameter
            update_sum += b_update
        tl.store(sums + i_chunk * 2, tl.sum(parameter_sum, axis=0))
        tl.store(sums + i_chunk * 2 + 1, tl.sum(update_sum, axis=0))


@triton.jit
def _trust_ratio(sums, i_first, numel, norm_clamp, CHUNK: tl.constexpr):
    """A tensor's trust ratio, from the sums of its chunks."""
    parts = tl.cdiv(numel, CHUNK)
    parameter_sum = tl.zeros((128,), tl.float64)
    update_sum = tl.zeros((128,), tl.float64)
    for first in range(0, parts, 128):
        o = first + tl.arange(0, 128)
        p_sums = sums + (i_first + o) * 2
        parameter_sum += tl.load(p_sums, mask=o < parts, other=0.0).to(tl.float64)
        update_sum += tl.load(p_sums + 1, mask=o < parts, other=0.0).to(tl.float64)
    weight_norm = tl.minimum(tl.sqrt_rn(tl.sum(parameter_sum, axis=0).to(tl.float32)), norm_clamp)
    update_norm = tl.sqrt_rn(tl.sum(update_sum, axis=0).to(tl.float32))
    positive = (weight_norm > 0) & (update_norm > 0)
    return tl.where(positive, tl.div_rn(weight_norm, tl.where(positive, update_norm, 1.0)), 1.0)


@triton.jit
def _move(
    table,
    i_tensor,
    o,
    numel,
    rate,
    epsilon,
    weight_decay,
    one_minus_decay,
    AVERAGE: tl.constexpr,
    ALIGNED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Update the weights, and their average, of one block."""
    p_parameter = _address(table, i_tensor, 0, ALIGNED)
    b_parameter = load_block(p_parameter, o, numel, MASKED)
    b_m = load_block(_address(table, i_tensor, 2, ALIGNED), o, numel, MASKED)
    b_v = load_block(_address(table, i_tensor, 3, ALIGNED), o, numel, MASKED)
    b_parameter -= rate * _update(b_parameter, b_m, b_v, epsilon, weight_decay)
    store_block(p_parameter, o, b_parameter, numel, MASKED)
    if AVERAGE:
        p_average = _address(table, i_tensor, 4, ALIGNED)
        b_average = load_block(p_average, o, numel, MASKED)
        store_block(p_average, o, b_average + one_minus_decay * (b_parameter - b_average), numel, MASKED)


@triton.jit
def update_kernel(
    table,
    chunks,
    sums,
    skip,
    learning_rate,
    epsilon,
    weight_decay,
    norm_clamp,
    one_minus_decay,
    AVERAGE: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_chunk = tl.program_id(0)
    if tl.load(skip) == 0:
        i_tensor, i_part, o, whole, more, numel = _chunk(table, chunks, i_chunk, CHUNK, BLOCK)
        # A tensor's chunks follow one another.
        rate = tl.load(learning_rate) * _trust_ratio(sums, i_chunk - i_part, numel, norm_clamp, CHUNK)
        for index in range(whole):
            _move(
                table, i_tensor, o + index * BLOCK, numel, rate, epsilon, weight_decay, one_minus_decay,
                AVERAGE, ALIGNED, False,
            )  # fmt: skip
        if more:
            _move(
                table, i_tensor, o + whole * BLOCK, numel, rate, epsilon, weight_decay, one_minus_decay,
                AVERAGE, ALIGNED, True,
            )  # fmt: skip


class LambPlan:
    """LAMB for one set of tensors: everything that does not change from step to step, made once.

    The addresses are taken here and never again. The memory behind them is kept alive, but a tensor that is given
    other memory later (`tensor.data = ...`, `Module.to`) is not followed: fill tensors in place, or make another plan.

    Args:
        parameters: float32, dense, on one device.
        gradients: one per parameter, laid out like it; not changed.
        exp_avg: m, likewise.
        exp_avg_sq: v, likewise.
        average: running average of the weights, likewise; empty for none.
        options: the constants of the formula.

    Raises:
        ValueError: lists of different lengths, bad dtypes, strides or devices.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        exp_avg: Sequence[Tensor],
        exp_avg_sq: Sequence[Tensor],
        average: Sequence[Tensor],
        options: LambOptions,
    ) -> None:
        check_lamb(parameters, gradients, exp_avg, exp_avg_sq, average)
        columns = parameters, gradients, exp_avg, exp_avg_sq, average or parameters
        self._kept = [[tensor.detach() for tensor in tensors] for tensors in columns]
        device = parameters[0].device
        addresses = torch.tensor([[tensor.data_ptr() for tensor in tensors] for tensors in self._kept])
        sizes = torch.tensor([tensor.numel() for tensor in parameters])
        parts = (sizes + CHUNK - 1) // CHUNK
        owners = torch.arange(len(sizes)).repeat_interleave(parts)
        places = torch.arange(len(owners)) - (parts.cumsum(0) - parts)[owners]
        self._table = torch.cat([addresses, sizes[None]]).T.contiguous().to(device)
        self._chunks = torch.stack([owners, places], 1).int().to(device)
        self._sums = torch.empty((len(owners), 2), device=device)
        self._options = options
        self._average, aligned = bool(average), not (addresses % TABLE_ALIGNMENT).any()
        self._constants = {"ALIGNED": aligned, "CHUNK": CHUNK, "BLOCK": BLOCK, "num_warps": 4}

    def step(self, learning_rate: Tensor, skip: Tensor, inverse_scale: Tensor) -> None:
        """Enqueue one update: two launches and nothing else, so that a CUDA graph may record it.

        The first step of a process compiles the kernels, so make one before recording; with `skip` set it changes
        nothing.

        Args:
            learning_rate: float32 [].
            skip: bool []; where true every bit stays as it is.
            inverse_scale: float32 [], undoes a gradient scaler's factor.

        Raises:
            ValueError: one of them has another dtype, shape or device.
        """
        for name, value in (("learning_rate", learning_rate), ("inverse_scale", inverse_scale)):
            check_scalar("LAMB", name, value, torch.float32, self._sums)
        check_scalar("LAMB", "skip", skip, torch.bool, self._sums)
        grid, tables = (len(self._chunks),), (self._table, self._chunks, self._sums)
        beta1, beta2, epsilon, weight_decay, norm_clamp, clip_value, average_decay = self._options
        moments_kernel[grid](
            *tables, skip, inverse_scale, beta1, beta2, 1 - beta1, 1 - beta2, epsilon, weight_decay,
            clip_value or 0.0, CLIP=clip_value is not None, **self._constants,
        )  # fmt: skip
        update_kernel[grid](
            *tables, skip, learning_rate, epsilon, weight_decay, norm_clamp, 1 - average_decay,
            AVERAGE=self._average, **self._constants,
        )  # fmt: skip
