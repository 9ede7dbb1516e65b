"""Linear layers of images' tokens [N, h, w, C].

On a CPU they are 1x1 convolutions: oneDNN takes half the time of the matrix product that torch has for float32 there.
The gradients of weight and bias are linear.cpp's, where it can be compiled.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eco_fast.models.cpu.build import PARTS, available, call

QUAD = 64  # channels, as in linear.cpp


def linear(layer: nn.Linear, tokens: Tensor) -> Tensor:
    """`layer(tokens)` for [N, h, w, C]."""
    if tokens.device.type != "cpu":
        result: Tensor = layer(tokens)
    elif _is_float32(tokens, layer.weight) and available("linear"):
        result = _Linear.apply(tokens, layer.weight, layer.bias)  # type: ignore[no-untyped-call]
    else:
        result = _convolved(tokens, layer.weight, layer.bias)
    return result


def _is_float32(tokens: Tensor, weight: Tensor) -> bool:
    return tokens.dtype == weight.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")


def _convolved(tokens: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return functional.conv2d(tokens.permute(0, 3, 1, 2), weight[:, :, None, None], bias).permute(0, 2, 3, 1)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tokens: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, weight)
        return _convolved(tokens, weight, bias)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        tokens, weight = ctx.saved_tensors
        of_tokens = _convolved(upstream, weight.T, None) if ctx.needs_input_grad[0] else None
        if not any(ctx.needs_input_grad[1:]):
            return of_tokens, None, None
        both = _weight_gradient(upstream, tokens)
        return of_tokens, both[:, : weight.shape[1]], both[:, weight.shape[1]]


@torch.library.custom_op("eco_fast::weight_gradient", mutates_args=())
def _weight_gradient(upstream: Tensor, tokens: Tensor) -> Tensor:
    """The gradients of the weight and, in the column behind it, of the bias; further columns are of no use."""
    outputs, inputs = upstream.shape[-1], tokens.shape[-1]
    parts = upstream.new_empty(PARTS, outputs, inputs // QUAD * QUAD + QUAD)
    counts = (upstream.numel() // outputs, outputs, inputs, PARTS)
    call("linear", "weight_gradient", [upstream.contiguous(), tokens.contiguous(), parts], counts)
    return parts.sum(0)


@_weight_gradient.register_fake
def _(upstream: Tensor, tokens: Tensor) -> Tensor:
    return upstream.new_empty(upstream.shape[-1], tokens.shape[-1] // QUAD * QUAD + QUAD)
