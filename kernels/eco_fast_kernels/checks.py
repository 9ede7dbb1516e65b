"""What the ops refuse: every message says what was expected, what came, and what to do."""

from collections.abc import Sequence

import torch
from torch import Tensor

from eco_fast_kernels import downsampling
from eco_fast_kernels.crops import CHANNELS, PlanColumn, are_crops
from eco_fast_kernels.decision import StepState
from eco_fast_kernels.muon import Matrices, MuonTensors

FLOATS = (torch.float16, torch.bfloat16, torch.float32)
WINDOWS = (8, 16)
MOST_CHANNELS_OF_A_HEAD = 64


def check_crop_pair(
    op: str, crops: Tensor, other: Tensor | None, scale: int, rounding: str, transposed: Tensor | None
) -> None:
    """Refuse crops that cannot be downsampled, or that do not match each other."""
    downsampling.check_crops(op, crops, scale, rounding, transposed)
    check_bytes(op, "the crop", crops)
    if crops.shape[3] != CHANNELS:
        raise ValueError(f"{op}: the kernels are made for {CHANNELS} channels, got {tuple(crops.shape)}")
    if other is not None:
        check_bytes(op, "sr", other)
        check_device(op, "sr", other, crops)
        if other.shape != crops.shape:
            raise ValueError(f"{op}: hr is {tuple(crops.shape)} but sr is {tuple(other.shape)}")
    if transposed is not None:
        check_device(op, "transposed", transposed, crops)
        if transposed.dtype != torch.bool or tuple(transposed.shape) != (crops.shape[0],):
            raise ValueError(
                f"{op}: transposed must be bool [{crops.shape[0]}], got {transposed.dtype} {tuple(transposed.shape)}"
            )


def check_plan(op: str, pixels: Tensor, plan: Tensor, side: int, margin: int) -> None:
    """Refuse what no crop can be cut from; the plan's values are not read."""
    if pixels.dtype != torch.uint8 or pixels.ndim != 1 or not pixels.is_contiguous():
        raise ValueError(
            f"{op}: pixels must be contiguous uint8 [bytes], got {pixels.dtype} {tuple(pixels.shape)} with strides "
            f"{pixels.stride()}; call .contiguous().view(-1) on it"
        )
    if plan.dtype != torch.int64 or plan.shape[1:] != (len(PlanColumn),) or not plan.is_contiguous():
        raise ValueError(
            f"{op}: the plan must be contiguous int64 [N, {len(PlanColumn)}], got {plan.dtype} {tuple(plan.shape)} "
            f"with strides {plan.stride()}"
        )
    check_device(op, "the plan", plan, pixels)
    if not plan.shape[0] or margin < 0 or side <= 2 * margin:
        raise ValueError(
            f"{op}: expected at least one crop, of more than twice its margin a side; got {plan.shape[0]} of {side} "
            f"pixels a side with a margin of {margin}"
        )


def check_plan_values(op: str, pixels: Tensor, plan: Tensor) -> None:
    """Refuse images that are not in the pixels; reads the plan, so it is for the CPU alone."""
    for index, (offset, row_bytes, height, width, _, _, orientation) in enumerate(plan.tolist()):
        last = offset + (height - 1) * row_bytes + CHANNELS * width
        if min(offset, height - 1, width - 1, row_bytes) < 0 or last > len(pixels) or not 0 <= orientation < 8:
            raise ValueError(
                f"{op}: crop {index} is of an image of {height} x {width} pixels at byte {offset}, with rows "
                f"{row_bytes} bytes apart and orientation {orientation}; expected an image inside the {len(pixels)} "
                "bytes, and an orientation of 0..7"
            )


def check_bytes(op: str, name: str, image: Tensor) -> None:
    """Refuse what is not uint8 images with whole rows."""
    if not are_crops(image):
        raise ValueError(
            f"{op}: {name} must be uint8 [N, H, W, C] with whole rows, got {image.dtype} {tuple(image.shape)} with "
            f"strides {image.stride()}; call .contiguous() on it"
        )


def check_target(op: str, name: str, image: Tensor, prediction: Tensor, margin: int) -> None:
    """Refuse an image that is not as large as the prediction with its margin."""
    samples, channels, height, width = prediction.shape
    expected = (samples, height + 2 * margin, width + 2 * margin, channels)
    if margin < 0 or tuple(image.shape) != expected:
        raise ValueError(
            f"{op}: a prediction of {tuple(prediction.shape)} and a margin of {margin} need {name} of {expected}, "
            f"got {tuple(image.shape)}"
        )


def check_alpha(op: str, alpha: Tensor, crops: Tensor) -> None:
    """Refuse what is not one weight, or one per sample."""
    if alpha.dtype != torch.float32 or tuple(alpha.shape) not in ((), (crops.shape[0],)):
        raise ValueError(
            f"{op}: alpha must be float32, one value or one per sample ({crops.shape[0]}), got {alpha.dtype} "
            f"{tuple(alpha.shape)}"
        )
    check_device(op, "alpha", alpha, crops)


def check_alpha_range(op: str, alpha: Tensor) -> None:
    """Refuse weights outside 0..1; reads them, so it is for the CPU alone."""
    low, high = alpha.min().item(), alpha.max().item()
    if not 0 <= low <= high <= 1:
        raise ValueError(f"{op}: alpha is a weight, 0..1, got {low} to {high}")


def check_scalar(op: str, name: str, value: Tensor, dtype: torch.dtype, like: Tensor) -> None:
    """Refuse what is not a tensor of one value."""
    if value.dtype != dtype or value.ndim:
        raise ValueError(f"{op}: {name} must be a {dtype} tensor of one value, got {value.dtype} {tuple(value.shape)}")
    check_device(op, name, value, like)


def check_step(op: str, gradients: Tensor, loss: Tensor, state: StepState) -> None:
    """Refuse what no step can be decided by."""
    check_scalar(op, "loss", loss, torch.float32, gradients)
    places = state.losses.numel()
    if gradients.dtype != torch.float32 or gradients.ndim != 1 or not gradients.numel():
        raise ValueError(f"{op}: gradients must be float32 [M], got {gradients.dtype} {tuple(gradients.shape)}")
    for name, tensor, like in zip(state._fields, state, StepState.at_start("meta", max(places, 1)), strict=True):
        if tensor.dtype != like.dtype or tensor.shape != like.shape:
            raise ValueError(
                f"{op}: {name} must be {like.dtype} {tuple(like.shape)}, got {tensor.dtype} {tuple(tensor.shape)}"
            )
        check_device(op, name, tensor, gradients)
    for name, tensor in (("gradients", gradients), ("losses", state.losses), ("skips", state.skips)):
        if not tensor.is_contiguous():
            raise ValueError(f"{op}: {name} must be contiguous, got strides {tensor.stride()}")


def check_windows(op: str, qkv: Tensor, qkv_bias: Tensor, table: Tensor, window: int, shift: int) -> None:
    """Refuse what the kernels of attention in windows are not made for."""
    if window not in WINDOWS or not 0 <= shift < window:
        raise ValueError(f"{op}: expected a window of 8 or 16 and a shift below it, got {window} and {shift}")
    check_computed(op, "qkv", qkv.dtype, qkv)
    if qkv.ndim != 4 or not qkv.is_contiguous():
        raise ValueError(
            f"{op}: qkv must be contiguous [N, h, w, 3*C], got {tuple(qkv.shape)} with strides {qkv.stride()}; "
            "call .contiguous() on it"
        )
    samples, height, width, channels = qkv.shape
    if not samples * height * width or height % window or width % window:
        raise ValueError(f"{op}: expected images of whole windows of {window}, got {tuple(qkv.shape)}; pad them")
    entries = (2 * window - 1) ** 2
    if table.ndim != 2 or table.shape[0] != entries or not table.shape[1] or not table.is_contiguous():
        raise ValueError(
            f"{op}: the table of a window of {window} must be contiguous [{entries}, heads], got {tuple(table.shape)} "
            f"with strides {table.stride()}"
        )
    heads = table.shape[1]
    if channels % (3 * heads) or not 0 < channels <= 3 * heads * MOST_CHANNELS_OF_A_HEAD:
        raise ValueError(
            f"{op}: expected q, k and v of {heads} heads with at most {MOST_CHANNELS_OF_A_HEAD} channels each, got "
            f"{channels} channels"
        )
    if qkv_bias.shape != (channels,) or not qkv_bias.is_contiguous():
        raise ValueError(
            f"{op}: qkv_bias must be contiguous [{channels}], got {tuple(qkv_bias.shape)} with strides "
            f"{qkv_bias.stride()}"
        )
    for name, tensor in (("qkv_bias", qkv_bias), ("the table", table)):
        check_computed(op, name, tensor.dtype, qkv)
        check_device(op, name, tensor, qkv)


def check_lamb(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    average: Sequence[Tensor],
) -> None:
    """Refuse parameters that are not dense, and other tensors that are not laid out like theirs."""
    if not parameters:
        raise ValueError("LAMB: expected at least one parameter, got none")
    lists = {"gradients": gradients, "exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "average": average or parameters}
    for name, tensors in lists.items():
        if len(tensors) != len(parameters):
            raise ValueError(f"LAMB: expected {len(parameters)} {name}, one per parameter, got {len(tensors)}")
    for index, parameter in enumerate(parameters):
        if parameter.dtype != torch.float32 or not is_dense(parameter):
            raise ValueError(
                f"LAMB: parameter {index} must be dense float32, got {parameter.dtype}, "
                f"shape {tuple(parameter.shape)}, strides {parameter.stride()}"
            )
        check_device("LAMB", f"parameter {index}", parameter, parameters[0])
        for name, tensors in lists.items():
            other = tensors[index]
            if other.dtype != torch.float32 or not matches_layout(other, parameter):
                raise ValueError(
                    f"LAMB: {name} {index} must be laid out like its parameter: float32 {tuple(parameter.shape)}, "
                    f"strides {parameter.stride()}; got {other.dtype} {tuple(other.shape)}, strides {other.stride()}"
                )
            check_device("LAMB", f"{name} {index}", other, parameters[0])


def check_muon(tensors: MuonTensors, matrices: Sequence[Matrices]) -> None:
    """Refuse tensors that do not fit together, and matrices that are not where the momentum is."""
    weights, size = tensors.weights, tensors.momentum.numel()
    others = weights.numel() - size
    sizes = {"gradients": size + others, "average": size + others, "momentum": size, "exp_avg": others}
    sizes |= {"weights": size + others, "exp_avg_sq": others, "corrections": 2}
    for name, tensor in tensors._asdict().items():
        if tensor is None:
            continue
        if tensor.dtype != torch.float32 or tensor.shape != (sizes[name],) or not tensor.is_contiguous():
            raise ValueError(
                f"Muon: {name} must be contiguous float32 [{sizes[name]}], got {tensor.dtype} {tuple(tensor.shape)} "
                f"with strides {tensor.stride()}"
            )
        check_device("Muon", name, tensor, weights)
    if not matrices:
        raise ValueError("Muon: expected at least one matrix, got none")
    end = 0
    for one in matrices:
        last = one.offset + (one.number - 1) * one.pitch + one.rows * one.columns
        if one.offset < end or one.pitch < one.rows * one.columns or last > size or (one.offset | one.pitch) % 4:
            raise ValueError(
                f"Muon: {one} must lie behind those before it and within the first {size} values, at multiples of 4"
            )
        end = last


def check_dtype(op: str, name: str, dtype: torch.dtype) -> None:
    """Refuse a dtype that the kernels do not work in."""
    if dtype not in FLOATS:
        raise ValueError(f"{op}: {name} must be float16, bfloat16 or float32, got {dtype}")


def check_computed(op: str, name: str, dtype: torch.dtype, x: Tensor) -> None:
    """Refuse a dtype that x cannot be computed with: the formulas of CPU tensors know float64 too."""
    if dtype != torch.float64 or x.is_cuda:
        check_dtype(op, name, dtype)


def check_device(op: str, name: str, value: Tensor, like: Tensor) -> None:
    """Refuse tensors on different devices."""
    if value.device != like.device:
        raise ValueError(f"{op}: {name} is on {value.device}, the rest on {like.device}; move it there")


def is_dense(tensor: Tensor) -> bool:
    """Whether the elements fill one stretch of memory, in any order of the axes."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size > 1 and stride != expected:
            return False
        expected *= size
    return True


def matches_layout(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors have their elements in the same places; the stride of an axis of size 1 means nothing."""
    return first.shape == second.shape and all(
        size == 1 or one == other for size, one, other in zip(first.shape, first.stride(), second.stride(), strict=True)
    )
