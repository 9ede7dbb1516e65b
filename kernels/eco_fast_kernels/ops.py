"""The ops as the rest of the program calls them: arguments checked, then the path that the device decides.

CPU tensors run `reference`, CUDA tensors run Triton (`registration`); there is no third way and nothing falls back.
Inside torch.compile the input and the loss of CPU tensors are not opaque: the compiler sees `reference` and fuses it
with what is around (`bench/bench_ops.py` says what that brings).
"""

import torch
from torch import Tensor

from eco_fast_kernels import attention, decision, downsampling, reference, registration  # noqa: F401 - registering is the import's effect
from eco_fast_kernels.checks import (
    check_alpha,
    check_bytes,
    check_crop_pair,
    check_device,
    check_dtype,
    check_plan,
    check_scalar,
    check_step,
    check_target,
    check_windows,
)
from eco_fast_kernels.crops import first_present
from eco_fast_kernels.decision import StepRules, StepState
from eco_fast_kernels.downsampling import Rounding
from eco_fast_kernels.reference import LossKind


def cut_crops(pixels: Tensor, plan: Tensor, side: int, margin: int) -> Tensor:
    """Crops of images that lie on the device: see `reference.cut_crops` for the formula and every argument.

    The plan's values are checked on the CPU; a GPU's are not read back, so there they have to be right.

    Raises:
        ValueError: bad shapes, dtypes, strides, devices, side or margin; an image outside the pixels.
    """
    check_plan("cut_crops", pixels, plan, side, margin)
    result: Tensor = torch.ops.eco_fast.cut_crops(pixels, plan, side, margin)
    return result


def downsample(crops: Tensor, scale: int, rounding: Rounding = "uint8", transposed: Tensor | None = None) -> Tensor:
    """D of crops that carry a margin: `downsampling.downsample`, to the byte, on every device."""
    check_crop_pair("downsample", crops, None, scale, rounding, transposed)
    result: Tensor = torch.ops.eco_fast.downsample(crops, scale, rounding, transposed)
    return result


def imresize(images: Tensor, scale: int, rounding: Rounding = "uint8") -> Tensor:
    """D of whole images of any size: `downsampling.imresize`, to the byte, on every device."""
    return downsample(downsampling.with_margin(images, scale), scale, rounding)


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

    `alpha` is a tensor so that a captured CUDA graph sees it change. Its range is checked on the CPU, outside
    torch.compile; a GPU's value is not read back.

    Raises:
        ValueError: bad shapes, dtypes, strides, scale, rounding, alpha or devices.
    """
    crops = first_present("downsample_blend", hr, sr)
    check_crop_pair("downsample_blend", crops, sr if hr is not None else None, scale, rounding, transposed)
    check_alpha("downsample_blend", alpha, crops)
    check_dtype("downsample_blend", "the output", dtype)
    if _fused_by_the_compiler(crops):
        return reference.downsample_blend(hr, sr, alpha, scale, rounding, transposed=transposed, dtype=dtype)
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
    crops = first_present("blended_loss", hr, sr)
    if kind not in reference.LOSS_KINDS:
        raise ValueError(f"blended_loss: the kind is one of {', '.join(reference.LOSS_KINDS)}, got {kind!r}")
    check_dtype("blended_loss", "the prediction", prediction.dtype)
    if prediction.ndim != 4:
        raise ValueError(f"blended_loss: the prediction must be [N, C, H, W], got {tuple(prediction.shape)}")
    for name, image in (("hr", hr), ("sr", sr)):
        if image is not None:
            check_bytes("blended_loss", name, image)
            check_device("blended_loss", name, image, prediction)
            check_target("blended_loss", name, image, prediction, margin)
    check_alpha("blended_loss", alpha, crops)
    if gradient_scale is not None:
        check_scalar("blended_loss", "gradient_scale", gradient_scale, torch.float32, prediction)
    if _fused_by_the_compiler(crops):  # autograd sees the formula, so the upstream gradient needs no preparation
        loss = reference.blended_loss(prediction, hr, sr, alpha, kind, margin=margin)
        return loss, loss.detach().isfinite()
    loss, _, finite = torch.ops.eco_fast.blended_loss(prediction, hr, sr, alpha, kind, margin, gradient_scale)
    return loss, finite


def window_attention(qkv: Tensor, qkv_bias: Tensor, table: Tensor, window: int, shift: int) -> Tensor:
    """Attention within the windows of images: see `attention.window_attention` for the formula and every argument.

    All three tensors have gradients. Inputs of 16 bits are multiplied in their dtype, with sums and softmax in float32.

    Raises:
        ValueError: bad shapes, dtypes, strides, window, shift or devices.
    """
    check_windows("window_attention", qkv, qkv_bias, table, window, shift)
    if not qkv.is_cuda:
        return attention.window_attention(qkv, qkv_bias, table, window, shift)
    from eco_fast_kernels import attention_registration  # noqa: F401, PLC0415 - Triton is for GPUs alone

    result: Tensor = torch.ops.eco_fast.attend_windows(qkv, qkv_bias, table, window, shift)
    return result


def decide_step(gradients: Tensor, loss: Tensor, state: StepState, rules: StepRules) -> tuple[Tensor, Tensor]:
    """Skip the step or accept it: see `decision.decide_step` for the rule and every argument.

    Never part of compiled code, so torch does not know it as an op. `gradients` must be contiguous.

    Raises:
        ValueError: bad shapes, dtypes, strides or devices.
    """
    check_step("decide_step", gradients, loss, state)
    if not gradients.is_cuda:
        return decision.decide_step(gradients, loss, state, rules)
    from eco_fast_kernels.fused import decide_step as kernel  # noqa: PLC0415 - Triton is for GPUs alone

    return kernel.launch(gradients, loss, state, rules)


def _fused_by_the_compiler(tensor: Tensor) -> bool:
    return torch.compiler.is_compiling() and tensor.device.type == "cpu"
