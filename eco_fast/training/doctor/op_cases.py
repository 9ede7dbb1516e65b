"""Every op that replaces a formula in a training, with that formula: the table that `ops.py` goes through.

A new op is a new row of `CASES`: inputs of `op_inputs.py`, the op on the device that is examined, its definition on the
CPU.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from eco_fast_kernels import (
    LambOptions,
    Rounding,
    StepRules,
    StepState,
    blended_loss,
    crop_side,
    cut_crops,
    decide_step,
    decision,
    downsample,
    downsample_blend,
    downsampling,
    imresize,
    margin_of,
    reference,
)
from torch import Tensor, nn

from eco_fast.models.cpu.linear import linear
from eco_fast.models.cpu.window_attention import attend, attend_by_torch
from eco_fast.training.doctor.network_op_cases import NETWORK_CASES
from eco_fast.training.doctor.op_case import CPU, GPU, ROUNDED, Bound, OpCase, Outputs, with_gradients
from eco_fast.training.doctor.op_inputs import (
    LR_SIDE,
    SCALE,
    WINDOW_SIDE,
    a_step,
    crop_pair,
    images_and_plan,
    lamb_tensors,
    pattern,
    predictions,
    random_crops,
    tokens,
    windows,
)
from eco_fast.training.optim.lamb_torch import lamb_by_torch

RULES = StepRules(spike_factor=5.0, scales=True)
LAMB = LambOptions(clip_value=0.1, weight_decay=0.01)
ANSWERS: dict[tuple[Rounding, int], int] = {
    ("uint8", 2): 179190620,
    ("uint8", 3): 35415755,
    ("uint8", 4): 11217156,
    ("im2double", 2): 179150350,
    ("im2double", 3): 35416283,
}
"""Checksums of MATLAB's `imresize` of `pattern`, to the byte: `tests/data` compares such images with MATLAB's own."""


def the_loss(loss: Callable[..., Any]) -> Callable[..., Bound]:
    """The loss against a pair, with the prediction's gradient."""

    def bind(hr: Tensor, sr: Tensor, alpha: Tensor, prediction: Tensor) -> Bound:
        def value(leaf: Tensor) -> Tensor:
            made = loss(leaf, hr, sr, alpha, "charbonnier", margin=margin_of(SCALE))
            return made[0] if isinstance(made, tuple) else made  # type: ignore[no-any-return]

        return with_gradients(value, prediction)

    return bind


def the_decision(decide: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Bound]:
    """The decision on a step, and the state behind it."""

    def bind(gradients: Tensor, loss: Tensor, *state: Tensor) -> Bound:
        return lambda: [*decide(gradients, loss, StepState(*state), RULES), *state]

    return bind


def the_update(lamb: Callable[..., Callable[..., None]]) -> Callable[..., Bound]:
    """The tensors behind a step of LAMB, without the gradients, which it may use up."""

    def bind(*tensors: Tensor) -> Bound:
        count = len(tensors) // 5
        lists = [list(tensors[kind * count : (kind + 1) * count]) for kind in range(5)]
        rate, one = (torch.tensor(value, device=tensors[0].device) for value in (1e-3, 1.0))
        update = lamb(*lists, LAMB)

        def run() -> Outputs:
            update(rate, one.isnan(), one)
            return [*lists[0], *(tensor for kept in lists[2:] for tensor in kept)]

        return run

    return bind


def lamb_by_triton(*arguments: Any) -> Callable[..., None]:
    """The fused update."""
    from eco_fast_kernels.fused.lamb_step import LambPlan  # noqa: PLC0415 - Triton is for GPUs alone

    return LambPlan(*arguments).step


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as a training has it compiled; compiled once for all calls with the same shapes."""
    return torch.compile(function, fullgraph=True, dynamic=False)


def checksum(bytes_: Tensor) -> Tensor:
    """A number that any other byte, or another order, changes: int64 []."""
    values = bytes_.flatten().long()
    return (values * torch.arange(1, len(values) + 1, device=values.device)).sum()


def known_answer(rounding: Rounding, scale: int) -> OpCase:
    """D of `pattern` against what MATLAB makes of it."""
    return OpCase(
        f"imresize x{scale} {rounding}",
        pattern,
        lambda image: lambda: [checksum(imresize(image, scale, rounding))],
        lambda _: lambda: [torch.tensor(ANSWERS[rounding, scale])],
        devices=(CPU, GPU),
        timed=False,
    )


CASES: tuple[OpCase, ...] = (
    *(known_answer(rounding, scale) for rounding, scale in ANSWERS),
    OpCase(
        "cut_crops",
        images_and_plan,
        lambda pixels, plan: lambda: [cut_crops(pixels, plan, crop_side(SCALE, LR_SIDE), margin_of(SCALE))],
        lambda pixels, plan: lambda: [reference.cut_crops(pixels, plan, crop_side(SCALE, LR_SIDE), margin_of(SCALE))],
    ),
    OpCase(
        "downsample",
        lambda samples: [random_crops(samples)],
        lambda crops: lambda: [downsample(crops, SCALE, rounding) for rounding in downsampling.ROUNDINGS],
        lambda crops: lambda: [downsampling.downsample(crops, SCALE, rounding) for rounding in downsampling.ROUNDINGS],
    ),
    OpCase(
        "downsample_blend",
        crop_pair,
        lambda hr, sr, alpha: lambda: [downsample_blend(hr, sr, alpha, SCALE)],
        lambda hr, sr, alpha: lambda: [reference.downsample_blend(hr, sr, alpha, SCALE)],
        tolerance=ROUNDED,
    ),
    OpCase("blended_loss", predictions, the_loss(blended_loss), the_loss(reference.blended_loss), tolerance=ROUNDED),
    OpCase("decide_step", a_step, the_decision(decide_step), the_decision(decision.decide_step)),
    OpCase(
        "lamb_step",
        lamb_tensors,
        the_update(lamb_by_triton),
        the_update(lambda *lists: lambda *step: reference.lamb_step(*lists, *step)),
        tolerance=ROUNDED,
    ),
    OpCase(
        "lamb_step by torch",
        lamb_tensors,
        the_update(lambda *lists: lambda *step: lamb_by_torch(*lists, *step)),
        the_update(lambda *lists: lambda *step: reference.lamb_step(*lists, *step)),
        tolerance=ROUNDED,
        devices=(CPU,),
    ),
    OpCase(
        "window_attention in C++",
        windows,
        lambda *leaves: with_gradients(lambda qkv, bias: attend(qkv, bias, None, WINDOW_SIDE, 4), *leaves),
        lambda *leaves: with_gradients(lambda qkv, bias: attend_by_torch(qkv, bias, None, WINDOW_SIDE, 4), *leaves),
        tolerance=ROUNDED,
        devices=(CPU,),
        compiles=True,
    ),
    OpCase(
        "linear in C++",
        tokens,
        lambda made, *weights: with_gradients(lambda x, *rest: linear(a_layer(*rest), x), made, *weights),
        lambda made, *weights: with_gradients(nn.functional.linear, made, *weights),
        tolerance=ROUNDED,
        devices=(CPU,),
        compiles=True,
    ),
    OpCase(
        "downsample_blend, compiled",
        crop_pair,
        lambda *inputs: lambda: [compiled(downsample_blend)(*inputs, SCALE)],
        lambda hr, sr, alpha: lambda: [reference.downsample_blend(hr, sr, alpha, SCALE)],
        tolerance=ROUNDED,
        devices=(CPU, GPU),
        compiles=True,
    ),
    OpCase(
        "blended_loss, compiled",
        predictions,
        the_loss(lambda *inputs, margin: compiled(blended_loss)(*inputs, margin=margin)),
        the_loss(reference.blended_loss),
        tolerance=ROUNDED,
        devices=(CPU, GPU),
        compiles=True,
    ),
    *NETWORK_CASES,
)


def a_layer(weight: Tensor, bias: Tensor) -> nn.Linear:
    """A linear layer of these."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    del layer.weight, layer.bias
    layer.weight, layer.bias = weight, bias  # type: ignore[assignment]
    return layer
