"""The ops as the rest of the program calls them: checked, registered with torch, on the path that the device decides.

CPU tensors run `reference`, CUDA tensors run Triton; there is no third way and nothing falls back. Each op is opaque to
torch.compile, which traces through it (`fullgraph=True`) with the shapes given here.
"""

from functools import cache
from typing import Any

import torch
from torch import Tensor

from eco_fast_kernels import reference
from eco_fast_kernels.reference import LossKind, Rounding
from eco_fast_kernels.windows import are_windows

NAMESPACE = "eco_fast"
FLOATS = (torch.float16, torch.bfloat16, torch.float32)


def downsample(windows: Tensor, scale: int, rounding: Rounding = "uint8", transposed: Tensor | None = None) -> Tensor:
    """D of windows that carry a margin: `reference.downsample`, to the byte, on every device."""
    _check_windows("downsample", windows, None, scale, rounding, transposed)
    result: Tensor = torch.ops.eco_fast.downsample(windows, scale, rounding, transposed)
    return result


def imresize(images: Tensor, scale: int, rounding: Rounding = "uint8") -> Tensor:
    """D of whole images of any size: `reference.imresize`, to the byte, on every device."""
    return downsample(reference.with_margin(images, scale), scale, rounding)


def downsample_blend(
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    scale: int,
    rounding: Rounding = "uint8",
    *,
    transposed: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The network's input: see `reference.downsample_blend` for the formula, shapes and ranges.

    `alpha` is a tensor so that a captured CUDA graph sees it change. Its range is checked on the CPU; a GPU's value is
    not read back.

    Raises:
        ValueError: bad shapes, dtypes, strides, scale, rounding, alpha or devices.
    """
    windows = hr if hr is not None else sr
    if windows is None:
        raise ValueError("downsample_blend: expected hr, sr or both, got neither")
    _check_windows("downsample_blend", windows, sr if hr is not None else None, scale, rounding, transposed)
    _check_alpha("downsample_blend", alpha, windows)
    _check_dtype("downsample_blend", "the output", dtype)
    result: Tensor = torch.ops.eco_fast.downsample_blend(hr, sr, alpha, scale, rounding, transposed, dtype)
    return result


def blended_loss(
    prediction: Tensor,
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    kind: LossKind = "l1",
    *,
    margin: int = 0,
    gradient_scale: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """The loss against the blended target: see `reference.blended_loss` for the formula, shapes and ranges.

    The gradient is made with the loss, in one pass, already multiplied by `gradient_scale`, so that a 16-bit gradient
    does not underflow. The backward pass multiplies it by upstream / gradient_scale, both on the device, which
    torch.compile fuses into whatever the network does to its output last.

    Args:
        prediction: floating point [N, C, H, W], channels_last, 0..1.
        hr: uint8 [N, H + 2*margin, W + 2*margin, C], or None where `alpha` is 0 throughout.
        sr: likewise, None where `alpha` is 1 throughout.
        alpha: float32 [] or [N], weight of `hr`, 0..1 (checked on the CPU alone).
        kind: l1, l2 or charbonnier.
        margin: pixels on each side of hr and sr that are not part of the target.
        gradient_scale: float32 [], the upstream gradient that is expected; None means 1.

    Returns:
        The loss, float32 [], and whether it is finite, bool []; both on the device.

    Raises:
        ValueError: bad shapes, dtypes, strides, kind, margin, alpha or devices.
    """
    windows = hr if hr is not None else sr
    if windows is None:
        raise ValueError("blended_loss: expected hr, sr or both, got neither")
    if kind not in reference.LOSS_KINDS:
        raise ValueError(f"blended_loss: the kind is one of {', '.join(reference.LOSS_KINDS)}, got {kind!r}")
    _check_dtype("blended_loss", "the prediction", prediction.dtype)
    for name, image in (("hr", hr), ("sr", sr)):
        if image is not None:
            _check_bytes("blended_loss", name, image)
            _check_device("blended_loss", name, image, prediction)
    samples, channels, height, width = prediction.shape
    expected = (samples, height + 2 * margin, width + 2 * margin, channels)
    for name, image in (("hr", hr), ("sr", sr)):
        if image is not None and (tuple(image.shape) != expected or margin < 0):
            raise ValueError(
                f"blended_loss: a prediction of {tuple(prediction.shape)} and a margin of {margin} need {name} of "
                f"{expected}, got {tuple(image.shape)}"
            )
    _check_alpha("blended_loss", alpha, windows)
    if gradient_scale is not None:
        _check_scalar("blended_loss", "gradient_scale", gradient_scale, torch.float32, prediction)
    loss, _, finite = torch.ops.eco_fast.blended_loss(prediction, hr, sr, alpha, kind, margin, gradient_scale)
    return loss, finite


def lamb_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    *,
    learning_rate: Tensor,
    skip: Tensor,
    step_count: Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    norm_clamp: float = 10.0,
    clip_value: float | None = None,
    inverse_scale: Tensor | None = None,
    average: list[Tensor] | None = None,
    average_decay: float = 0.999,
) -> None:
    """One LAMB update in place: see `reference.lamb_step` for the formula and every argument.

    Raises:
        ValueError: lists of different lengths, bad shapes, dtypes, strides or devices.
    """
    if not parameters:
        raise ValueError("lamb_step: expected at least one parameter, got none")
    average = [] if average is None else average
    lists = {"gradients": gradients, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "average": average or parameters}
    for name, tensors in lists.items():
        if len(tensors) != len(parameters):
            raise ValueError(f"lamb_step: expected {len(parameters)} {name}, one per parameter, got {len(tensors)}")
    for index, parameter in enumerate(parameters):
        if parameter.dtype != torch.float32 or not _is_dense(parameter):
            raise ValueError(
                f"lamb_step: parameter {index} must be dense float32, got {parameter.dtype}, "
                f"shape {tuple(parameter.shape)}, strides {parameter.stride()}"
            )
        for name, tensors in lists.items():
            other = tensors[index]
            if other.dtype != torch.float32 or other.shape != parameter.shape or other.stride() != parameter.stride():
                raise ValueError(
                    f"lamb_step: {name} {index} must be laid out like its parameter: float32 {tuple(parameter.shape)}, "
                    f"strides {parameter.stride()}; got {other.dtype} {tuple(other.shape)}, strides {other.stride()}"
                )
            _check_device("lamb_step", f"{name} {index}", other, parameters[0])
    _check_scalar("lamb_step", "learning_rate", learning_rate, torch.float32, parameters[0])
    if inverse_scale is not None:
        _check_scalar("lamb_step", "inverse_scale", inverse_scale, torch.float32, parameters[0])
    _check_scalar("lamb_step", "skip", skip, torch.bool, parameters[0])
    count = skip.new_zeros((), dtype=torch.int64) if step_count is None else step_count
    _check_scalar("lamb_step", "step_count", count, torch.int64, parameters[0])
    torch.ops.eco_fast.lamb_step(
        parameters,
        gradients,
        exp_avg,
        exp_avg_sq,
        average,
        learning_rate,
        skip,
        count,
        inverse_scale,
        betas[0],
        betas[1],
        epsilon,
        weight_decay,
        norm_clamp,
        clip_value,
        average_decay,
    )


# --- registration: reference on the CPU, Triton on CUDA, shapes for tracing -------------------------------------------


@torch.library.custom_op(f"{NAMESPACE}::downsample", mutates_args=(), device_types="cpu")
def _downsample(windows: Tensor, scale: int, rounding: str, transposed: Tensor | None) -> Tensor:
    return reference.downsample(windows, scale, rounding, transposed)  # type: ignore[arg-type]


@_downsample.register_kernel("cuda")
def _(windows: Tensor, scale: int, rounding: str, transposed: Tensor | None) -> Tensor:
    from eco_fast_kernels.fused import downsample_blend as kernel  # noqa: PLC0415 - Triton is for GPUs alone

    unused = _one(windows.device)
    return kernel.launch(windows, None, unused, scale, rounding, transposed, torch.uint8)  # type: ignore[arg-type]


@_downsample.register_fake
def _(windows: Tensor, scale: int, rounding: str, transposed: Tensor | None) -> Tensor:  # noqa: ARG001
    samples, height, width, channels = windows.shape
    return windows.new_empty((samples, height // scale - 4, width // scale - 4, channels))


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
    _check_alpha_range("downsample_blend", alpha)
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
    windows = hr if hr is not None else sr
    samples, height, width, channels = (windows if windows is not None else alpha).shape
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
    _check_alpha_range("blended_loss", alpha)
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
    scale = _one(dense.device) if gradient_scale is None else gradient_scale
    return kernel.launch(dense, hr, sr, alpha, kind, margin, scale)  # type: ignore[arg-type]


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


@torch.library.custom_op(
    f"{NAMESPACE}::lamb_step",
    mutates_args=("parameters", "exp_avg", "exp_avg_sq", "average", "skip", "step_count"),
    device_types="cpu",
)
def _lamb_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    average: list[Tensor],
    learning_rate: Tensor,
    skip: Tensor,
    step_count: Tensor,
    inverse_scale: Tensor | None,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    norm_clamp: float,
    clip_value: float | None,
    average_decay: float,
) -> None:
    reference.lamb_step(
        parameters,
        gradients,
        exp_avg,
        exp_avg_sq,
        learning_rate=learning_rate,
        skip=skip,
        step_count=step_count,
        betas=(beta1, beta2),
        epsilon=epsilon,
        weight_decay=weight_decay,
        norm_clamp=norm_clamp,
        clip_value=clip_value,
        inverse_scale=inverse_scale,
        average=average,
        average_decay=average_decay,
    )


@_lamb_step.register_kernel("cuda")
def _(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    average: list[Tensor],
    learning_rate: Tensor,
    skip: Tensor,
    step_count: Tensor,
    inverse_scale: Tensor | None,
    beta1: float,
    beta2: float,
    epsilon: float,
    weight_decay: float,
    norm_clamp: float,
    clip_value: float | None,
    average_decay: float,
) -> None:
    from eco_fast_kernels.fused import lamb_step as kernel  # noqa: PLC0415

    kernel.launch(
        parameters,
        gradients,
        exp_avg,
        exp_avg_sq,
        average,
        learning_rate=learning_rate,
        skip=skip,
        step_count=step_count,
        inverse_scale=_one(skip.device) if inverse_scale is None else inverse_scale,
        betas=(beta1, beta2),
        epsilon=epsilon,
        weight_decay=weight_decay,
        norm_clamp=norm_clamp,
        clip_value=clip_value,
        average_decay=average_decay,
    )


# --- checks -----------------------------------------------------------------------------------------------------------


@cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)


def _check_windows(
    op: str, windows: Tensor, other: Tensor | None, scale: int, rounding: str, transposed: Tensor | None
) -> None:
    reference.check_windows(op, windows, scale, rounding)
    _check_bytes(op, "the window", windows)
    if other is not None:
        _check_bytes(op, "sr", other)
        _check_device(op, "sr", other, windows)
        if other.shape != windows.shape:
            raise ValueError(f"{op}: hr is {tuple(windows.shape)} but sr is {tuple(other.shape)}")
    if transposed is not None:
        _check_device(op, "transposed", transposed, windows)
        if transposed.dtype != torch.bool or tuple(transposed.shape) != (windows.shape[0],):
            raise ValueError(
                f"{op}: transposed must be bool [{windows.shape[0]}], got {transposed.dtype} {tuple(transposed.shape)}"
            )
        if windows.shape[1] != windows.shape[2]:
            raise ValueError(f"{op}: transposed samples need square windows, got {tuple(windows.shape)}")


def _check_bytes(op: str, name: str, image: Tensor) -> None:
    if not are_windows(image):
        raise ValueError(
            f"{op}: {name} must be uint8 [N, H, W, C] with whole rows, got {image.dtype} {tuple(image.shape)} with "
            f"strides {image.stride()}; call .contiguous() on it"
        )


def _check_alpha(op: str, alpha: Tensor, windows: Tensor) -> None:
    if alpha.dtype != torch.float32 or tuple(alpha.shape) not in ((), (windows.shape[0],)):
        raise ValueError(
            f"{op}: alpha must be float32, one value or one per sample ({windows.shape[0]}), got {alpha.dtype} "
            f"{tuple(alpha.shape)}"
        )
    _check_device(op, "alpha", alpha, windows)


def _check_alpha_range(op: str, alpha: Tensor) -> None:
    low, high = alpha.min().item(), alpha.max().item()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{op}: alpha is a weight, 0..1, got {low} to {high}")


def _check_scalar(op: str, name: str, value: Tensor, dtype: torch.dtype, like: Tensor) -> None:
    if value.dtype != dtype or value.ndim:
        raise ValueError(f"{op}: {name} must be a {dtype} tensor of one value, got {value.dtype} {tuple(value.shape)}")
    _check_device(op, name, value, like)


def _check_dtype(op: str, name: str, dtype: torch.dtype) -> None:
    if dtype not in FLOATS:
        raise ValueError(f"{op}: {name} must be float16, bfloat16 or float32, got {dtype}")


def _check_device(op: str, name: str, value: Tensor, like: Tensor) -> None:
    if value.device != like.device:
        raise ValueError(f"{op}: {name} is on {value.device}, the rest on {like.device}; move it there")


def _is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in any order of the axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True
