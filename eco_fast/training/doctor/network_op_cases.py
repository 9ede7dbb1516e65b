"""The ops of networks, with their formulas: rows of the table of `op_cases.py`, in bf16 as a GPU trains."""

from collections.abc import Callable
from typing import Any

import torch
from eco_fast_kernels import (
    ChannelGradients,
    ChannelState,
    ChannelWeights,
    add_norm,
    attention,
    bias_gelu,
    channel_attention,
    column_sums,
    epilogues,
    network_ops,
    normalisation,
    window_attention,
)
from torch import Tensor

from eco_fast.training.doctor.op_case import ROUNDED, Bound, OpCase, with_gradients
from eco_fast.training.doctor.op_inputs import WINDOW_SIDE, feature_maps, token_rows, window_tokens

HALF = 1e-2  # of the norm of what is right: bf16 keeps 8 bits
SQUEEZED = 4
Module = Any
"""What holds the ops: `eco_fast_kernels`, or the module of their formulas."""


def the_epilogues(ops: Module) -> Callable[..., Bound]:
    """What follows a convolution, forward and backward."""

    def bind(x: Tensor, residual: Tensor, bias: Tensor) -> Bound:
        sums = column_sums(x, 2)

        def run() -> list[Tensor]:
            active = ops.bias_relu(x, bias)
            total = ops.add_residual(residual, x, bias, 0.1)
            masked = ops.relu_gradient(residual, active, sums, 0)
            merged, branch = ops.merge_gradients(residual, x, 0.1, None, x.dtype, sums, 1)
            return [active, total, masked, merged, branch, sums]

        return run

    return bind


def the_channel_attention(ops: Module) -> Callable[..., Bound]:
    """RCAN's, forward and backward."""

    def bind(x: Tensor, residual: Tensor, bias: Tensor) -> Bound:
        matrix = torch.outer(torch.linspace(-1, 1, SQUEEZED, device=x.device), bias.float())
        weights = ChannelWeights(bias, matrix, matrix[:, 0], matrix.mT.contiguous(), bias)
        state = ChannelState.empty(x, 1, SQUEEZED)
        gradients = ChannelGradients.empty(state)

        def run() -> list[Tensor]:
            ops.channel_sums(x, state, 0)
            out = ops.attend_channels(x, residual, weights, state, 0)
            upstream = ops.attention_sums(residual, x, x, gradients, 0)
            gradient = ops.attention_gradient(upstream, weights, state, gradients, 0)
            return [out, upstream, gradient, *state, *gradients]

        return run

    return bind


def the_norm(add: Callable[..., tuple[Tensor, Tensor]]) -> Callable[..., Bound]:
    """The sum and its normalisation, with all gradients."""

    def both(stream: Tensor, branch: Tensor, bias: Tensor, weight: Tensor, shift: Tensor) -> Tensor:
        return torch.cat(add(stream, branch, bias, None, weight, shift, 1e-5, stream.dtype))

    return lambda *leaves: with_gradients(both, *leaves)


def the_gelu(gelu: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Bound]:
    """The activation, with both gradients."""
    return lambda stream, _, bias, *__: with_gradients(gelu, stream, bias)


def the_attention(attend: Callable[..., Tensor]) -> Callable[..., Bound]:
    """Attention in shifted windows, with all gradients."""
    return lambda *leaves: with_gradients(lambda *three: attend(*three, WINDOW_SIDE, WINDOW_SIDE // 2), *leaves)


NETWORK_CASES = (
    OpCase("epilogues", feature_maps, the_epilogues(network_ops), the_epilogues(epilogues), tolerance=HALF),
    OpCase(
        "channel_attention",
        feature_maps,
        the_channel_attention(network_ops),
        the_channel_attention(channel_attention),
        tolerance=HALF,
    ),
    OpCase("add_norm", token_rows, the_norm(add_norm), the_norm(normalisation.add_norm), tolerance=ROUNDED),
    OpCase("bias_gelu", token_rows, the_gelu(bias_gelu), the_gelu(normalisation.bias_gelu), tolerance=ROUNDED),
    OpCase(
        "window_attention",
        window_tokens,
        the_attention(window_attention),
        the_attention(attention.window_attention),
        tolerance=ROUNDED,
    ),
)
