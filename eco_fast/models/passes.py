"""Pieces of the forward and backward passes that are written by hand, for GPUs.

Convolutions are 3x3 with one pixel of padding; their bias is left to the pass behind them.
"""

from typing import Any

import torch
from eco_fast_kernels import add_parts, add_residual, bias_relu, column_sums, merge_gradients
from torch import Tensor, nn
from torch.nn import functional

from eco_fast.models.convolutions import convolution_fuses_relu, cudnn_convolution_relu

STRIDE_PADDING_DILATION = ((1, 1), (1, 1), (1, 1))


def convolve(x: Tensor, weight: Tensor) -> Tensor:
    """[N, C, H, W] to [N, outputs, H, W], without a bias."""
    return functional.conv2d(x, weight, padding=1)


def convolve_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(convolution + bias): by cuDNN in one pass where it can, else in two."""
    if convolution_fuses_relu(x.device, x.dtype):
        return cudnn_convolution_relu(x, weight, bias)
    return bias_relu(convolve(x, weight), bias)


def convolution_gradients(upstream: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the weight."""
    of_x, of_weight, _ = torch.ops.aten.convolution_backward(
        upstream, x, weight, None, *STRIDE_PADDING_DILATION, False, (0, 0), 1, (True, True, False)
    )
    return of_x, of_weight


def weights_of(chain: nn.Module, x: Tensor) -> list[Tensor]:
    """Filters and bias of every convolution of a module, in its order, in the dtype that x is computed in."""
    convolutions = [module for module in chain.modules() if isinstance(module, nn.Conv2d)]
    weights = [one for conv in convolutions for one in (conv.weight, conv.bias) if one is not None]
    return [one.to(computed_in(x)) for one in weights]


def computed_in(x: Tensor) -> torch.dtype:
    """The dtype that products of x are computed in: autocast's where it is on."""
    return torch.get_autocast_dtype("cuda") if torch.is_autocast_enabled("cuda") else x.dtype


def residual_sum(
    residual: Tensor, x: Tensor, bias: Tensor, factors: Tensor | None = None, dtype: torch.dtype | None = None
) -> Tensor:
    """`add_residual` with gradients: see there."""
    out: Tensor = _ResidualSum.apply(residual, x, bias, factors, dtype)  # type: ignore[no-untyped-call]
    return out


def channels_last(x: Tensor) -> Tensor:
    """[N, C, H, W] as the passes want it. A traced gradient lies right, and asking would make the compiler copy it."""
    return x if torch.compiler.is_compiling() else x.contiguous(memory_format=torch.channels_last)


class _ResidualSum(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, residual: Tensor, x: Tensor, bias: Tensor, factors: Tensor | None, dtype: torch.dtype | None
    ) -> Tensor:
        ctx.dtypes = residual.dtype, x.dtype, bias.dtype
        ctx.save_for_backward(factors)
        return add_residual(residual, x, bias, 1.0, factors, dtype)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (factors,), upstream = ctx.saved_tensors, channels_last(upstream)
        of_residual, of_x, of_bias = ctx.dtypes
        sums = column_sums(upstream, 1)
        _, gradient = merge_gradients(upstream, None, 1.0, factors, of_x, sums, 0)
        return upstream.to(of_residual), gradient, add_parts(sums, of_bias), None, None
