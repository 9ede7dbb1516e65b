"""Attention in windows in torch's registry, for CUDA tensors: `ops` imports this, and Triton with it, for the first.

The compiler sees the kernels behind these ops and launches them itself. The arguments were checked by `ops`.
"""

from typing import Any

import torch
from torch import Tensor

from eco_fast_kernels.fused.window_attention import launch as launch_forward
from eco_fast_kernels.fused.window_attention_backward import launch as launch_backward
from eco_fast_kernels.fused.window_tiles import form_of
from eco_fast_kernels.registration import NAMESPACE


@torch.library.triton_op(f"{NAMESPACE}::attend_windows", mutates_args=())
def _attend_windows(qkv: Tensor, qkv_bias: Tensor, table: Tensor, window: int, shift: int) -> Tensor:
    return launch_forward(qkv, qkv_bias, table, window, shift, form_of(qkv, table.shape[1], window))


@torch.library.triton_op(f"{NAMESPACE}::attend_windows_backward", mutates_args=())
def _attend_windows_backward(
    upstream: Tensor, qkv: Tensor, qkv_bias: Tensor, table: Tensor, window: int, shift: int
) -> tuple[Tensor, Tensor, Tensor]:
    return launch_backward(upstream, qkv, qkv_bias, table, window, shift, form_of(qkv, table.shape[1], window))


def _keep_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names them
    *tensors, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    gradients = torch.ops.eco_fast.attend_windows_backward(
        upstream.contiguous(), *ctx.saved_tensors, ctx.window, ctx.shift
    )
    return *gradients, None, None


_attend_windows.register_autograd(_backward, setup_context=_keep_inputs)
