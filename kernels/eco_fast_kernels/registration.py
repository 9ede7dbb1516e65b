"""The ops in torch's registry: `reference` for CPU tensors, Triton for CUDA tensors, shapes for tracing.

Each is opaque to torch.compile, which traces through it (`fullgraph=True`) with the shapes given here. The arguments
were checked by `ops`. Triton is imported when the first CUDA tensor comes: it is for GPUs alone.
"""

from typing import Any

import torch
from torch import Tensor

from eco_fast_kernels import downsampling, reference
from eco_fast_kernels.checks import check_alpha_range, check_plan_values
from eco_fast_kernels.crops import as_crops, first_present, padded_row

NAMESPACE = "eco_fast"


@torch.library.custom_op(f"{NAMESPACE}::cut_crops", mutates_args=(), device_types="cpu")
def _cut_crops(pixels: Tensor, plan: Tensor, side: int, margin: int) -> Tensor:
    check_plan_values("cut_crops", pixels, plan)
    return reference.cut_crops(pixels, plan, side, margin)


@_cut_crops.register_kernel("cuda")
def _(pixels: Tensor, plan: Tensor, side: int, margin: int) -> Tensor:
    from eco_fast_kernels.fused import cut_crops as kernel  # noqa: PLC0415

    return kernel.launch(pixels, plan, side, margin)


@_cut_crops.register_fake
def _(pixels: Tensor, plan: Tensor, side: int, margin: int) -> Tensor:
    lead, pitch = padded_row(side, margin)
    return as_crops(pixels.new_empty((plan.shape[0], side, pitch)), lead)


@torch.library.custom_op(f"{NAMESPACE}::downsample", mutates_args=(), device_types="cpu")
def _downsample(crops: Tensor, scale: int, rounding: str, transposed: Tensor | None) -> Tensor:
    return downsampling.downsample(crops, scale, rounding, transposed)  # type: ignore[arg-type]


@_downsample.register_kernel("cuda")
def _(crops: Tensor, scale: int, rounding: str, transposed: Tensor | None) -> Tensor:
    from eco_fast_kernels.fused import downsample_blend as kernel  # noqa: PLC0415

    return kernel.launch(crops, None, None, scale, rounding, transposed, torch.uint8)  # type: ignore[arg-type]


@_downsample.register_fake
def _(crops: Tensor, scale: int, rounding: str, transposed: Tensor | None) -> Tensor:  # noqa: ARG001
    samples, height, width, channels = crops.shape
    return crops.new_empty((samples, height // scale - 4, width // scale - 4, channels))


@torch.library.custom_op(f"{NAMESPACE}::downsample_blend", mutates_args=(), device_types="cpu")
def _downsample_blend(
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    scale: int,
    rounding: str,
    transposed: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    check_alpha_range("downsample_blend", alpha)
    return reference.downsample_blend(hr, sr, alpha, scale, rounding, transposed=transposed, dtype=dtype)  # type: ignore[arg-type]


@_downsample_blend.register_kernel("cuda")
def _(
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    scale: int,
    rounding: str,
    transposed: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    from eco_fast_kernels.fused import downsample_blend as kernel  # noqa: PLC0415

    return kernel.launch(hr, sr, alpha, scale, rounding, transposed, dtype)  # type: ignore[arg-type]


@_downsample_blend.register_fake
def _(
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    scale: int,
    rounding: str,  # noqa: ARG001
    transposed: Tensor | None,  # noqa: ARG001
    dtype: torch.dtype,
) -> Tensor:
    samples, height, width, channels = first_present("downsample_blend", hr, sr).shape
    out = alpha.new_empty((samples, height // scale - 4, width // scale - 4, channels), dtype=dtype)
    return out.permute(0, 3, 1, 2)


@torch.library.custom_op(f"{NAMESPACE}::blended_loss", mutates_args=(), device_types="cpu")
def _blended_loss(
    prediction: Tensor,
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    kind: str,
    margin: int,
    gradient_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    check_alpha_range("blended_loss", alpha)
    loss, gradient = reference.blended_loss_and_gradient(
        prediction,
        hr,
        sr,
        alpha,
        kind,  # type: ignore[arg-type]
        margin,
        gradient_scale,
    )
    return loss, gradient, loss.isfinite()


@_blended_loss.register_kernel("cuda")
def _(
    prediction: Tensor,
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    kind: str,
    margin: int,
    gradient_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    from eco_fast_kernels.fused import blended_loss as kernel  # noqa: PLC0415

    dense = prediction.contiguous(memory_format=torch.channels_last)
    return kernel.launch(dense, hr, sr, alpha, kind, margin, gradient_scale)  # type: ignore[arg-type]


@_blended_loss.register_fake
def _(
    prediction: Tensor,
    hr: Tensor | None,  # noqa: ARG001
    sr: Tensor | None,  # noqa: ARG001
    alpha: Tensor,  # noqa: ARG001
    kind: str,  # noqa: ARG001
    margin: int,  # noqa: ARG001
    gradient_scale: Tensor | None,  # noqa: ARG001
) -> tuple[Tensor, Tensor, Tensor]:
    gradient = torch.empty_like(prediction, memory_format=torch.channels_last)
    loss = prediction.new_empty((), dtype=torch.float32)
    return loss, gradient, prediction.new_empty((), dtype=torch.bool)


def _keep_gradient(
    ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
) -> None:
    _, gradient, finite = output
    ctx.mark_non_differentiable(gradient, finite)
    ctx.save_for_backward(gradient, inputs[-1])


def _backward(ctx: torch.autograd.function.FunctionCtx, upstream: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    gradient, gradient_scale = ctx.saved_tensors  # type: ignore[attr-defined]
    factor = upstream if gradient_scale is None else upstream / gradient_scale
    return gradient * factor, None, None, None, None, None, None


_blended_loss.register_autograd(_backward, setup_context=_keep_gradient)
