"""The ops of residual networks as the rest of the program calls them: arguments checked, then what the device decides.

CPU tensors run the formulas in `epilogues` and `channel_attention`, CUDA tensors run Triton. None has a derivative: the
forward and backward passes of a network are written with them by hand. To torch.compile they are no secret
(`torch.library.triton_op`): it launches the kernels itself and frees their memory with the rest.
"""

from typing import Any

import torch
from torch import Tensor

from eco_fast_kernels import channel_attention, epilogues
from eco_fast_kernels.channel_attention import ChannelGradients, ChannelState, ChannelWeights
from eco_fast_kernels.checks import FLOATS, check_device, check_dtype
from eco_fast_kernels.epilogues import accumulated, parts_of


def bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """`epilogues.bias_relu` on every device.

    Raises:
        ValueError: bad shapes, dtypes or devices.
    """
    _check_images("bias_relu", x=x)
    _check_values("bias_relu", "the bias", bias, (x.shape[1],), x)
    if not x.is_cuda:
        return epilogues.bias_relu(x, bias)
    out: Tensor = _registered().bias_relu(x, bias)
    return out


def add_residual(
    residual: Tensor,
    x: Tensor,
    bias: Tensor,
    factor: float = 1.0,
    factors: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`epilogues.add_residual` on every device.

    Raises:
        ValueError: bad shapes, dtypes or devices.
    """
    _check_images("add_residual", residual=residual, x=x)
    _check_values("add_residual", "the bias", bias, (x.shape[1],), x)
    _check_factors("add_residual", factors, x)
    if not x.is_cuda:
        return epilogues.add_residual(residual, x, bias, factor, factors, dtype)
    out: Tensor = _registered().add_residual(residual, x, bias, factor, factors, dtype)
    return out


def relu_gradient(upstream: Tensor, activation: Tensor, sums: Tensor, index: int) -> Tensor:
    """`epilogues.relu_gradient` on every device.

    Raises:
        ValueError: bad shapes, dtypes, devices or index.
    """
    _check_images("relu_gradient", upstream=upstream, activation=activation)
    _check_place("relu_gradient", sums, index, _shape_of_sums(upstream), upstream)
    if not upstream.is_cuda:
        return epilogues.relu_gradient(upstream, activation, sums, index)
    gradient: Tensor = _registered().relu_gradient(upstream, activation, sums, index)
    return gradient


def merge_gradients(
    first: Tensor,
    second: Tensor | None,
    factor: float,
    factors: Tensor | None,
    dtype: torch.dtype,
    sums: Tensor,
    index: int,
) -> tuple[Tensor, Tensor]:
    """`epilogues.merge_gradients` on every device, with the argument or the other result where that left one empty.

    Raises:
        ValueError: bad shapes, dtypes, devices or index.
    """
    _check_images("merge_gradients", first=first, second=second)
    _check_factors("merge_gradients", factors, first)
    _check_place("merge_gradients", sums, index, _shape_of_sums(first), first)
    if first.is_cuda:
        check_dtype("merge_gradients", "the branch's gradient", dtype)
        total, branch = _registered().merge_gradients(first, second, factor, factors, dtype, sums, index)
    else:
        total, branch = epilogues.merge_gradients(first, second, factor, factors, dtype, sums, index)
    total = first if second is None else total
    return total, branch if branch.numel() else total


def add_parts(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """`epilogues.add_parts` on every device, in one launch."""
    if not sums.is_cuda:
        return epilogues.add_parts(sums, dtype)
    total: Tensor = _registered().add_parts(sums, dtype)
    return total


def channel_sums(x: Tensor, state: ChannelState, index: int) -> None:
    """`channel_attention.channel_sums` on every device.

    Raises:
        ValueError: bad shapes, dtypes, devices or index.
    """
    _check_images("channel_sums", x=x)
    _check_place("channel_sums", state.sums, index, (len(x), parts_of(x), x.shape[1]), x)
    if x.is_cuda:
        _registered().channel_sums(x, state.sums, index)
    else:
        channel_attention.channel_sums(x, state, index)


def attend_channels(x: Tensor, residual: Tensor, weights: ChannelWeights, state: ChannelState, index: int) -> Tensor:
    """`channel_attention.attend_channels` on every device.

    Raises:
        ValueError: bad shapes, dtypes, devices or index.
    """
    _check_images("attend_channels", x=x, residual=residual)
    _check_weights("attend_channels", weights, x)
    _check_state("attend_channels", state, index, weights, x)
    if not x.is_cuda:
        return channel_attention.attend_channels(x, residual, weights, state, index)
    out: Tensor = _registered().attend_channels(x, residual, *weights, *state, index)
    return out


def attention_sums(first: Tensor, second: Tensor | None, x: Tensor, gradients: ChannelGradients, index: int) -> Tensor:
    """`channel_attention.attention_sums` on every device; without a second it returns the first.

    Raises:
        ValueError: bad shapes, dtypes, devices or index.
    """
    _check_images("attention_sums", first=first, second=second, x=x)
    _check_place("attention_sums", gradients.sums, index, (2, len(x), parts_of(x), x.shape[1]), x)
    if x.is_cuda:
        upstream: Tensor = _registered().attention_sums(first, second, x, gradients.sums, index)
    else:
        upstream = channel_attention.attention_sums(first, second, x, gradients, index)
    return first if second is None else upstream


def attention_gradient(
    upstream: Tensor, weights: ChannelWeights, state: ChannelState, gradients: ChannelGradients, index: int
) -> Tensor:
    """`channel_attention.attention_gradient` on every device.

    Raises:
        ValueError: bad shapes, dtypes, devices or index.
    """
    _check_images("attention_gradient", upstream=upstream)
    _check_weights("attention_gradient", weights, upstream)
    _check_state("attention_gradient", state, index, weights, upstream)
    shapes = ((2, *state.sums.shape[1:]), *(values.shape[1:] for values in state[1:]))
    for values, shape in zip(gradients, shapes, strict=True):
        _check_place("attention_gradient", values, index, shape, upstream)
    if not upstream.is_cuda:
        return channel_attention.attention_gradient(upstream, weights, state, gradients, index)
    gradient: Tensor = _registered().attention_gradient(
        upstream, weights.bias, weights.down, weights.up, state.hidden, state.scales, *gradients, index
    )
    return gradient


def _registered() -> Any:
    """The ops in torch's registry, where the kernels' modules put them; Triton is for GPUs alone."""
    from eco_fast_kernels.fused import channel_attention_backward, epilogues  # noqa: F401, PLC0415

    return torch.ops.eco_fast


def _check_images(op: str, **images: Tensor | None) -> None:
    (first_name, first), *_ = images.items()
    assert first is not None
    for name, image in images.items():
        if image is None:
            continue
        _check_float(op, name, image)
        if image.ndim != 4 or image.shape != first.shape:
            wanted = "[N, C, H, W]" if name == first_name else f"as large as {first_name}, {tuple(first.shape)}"
            raise ValueError(f"{op}: {name} must be {wanted}, got {tuple(image.shape)}")
        check_device(op, name, image, first)


def _check_float(op: str, name: str, values: Tensor) -> None:
    if values.dtype not in FLOATS and (values.is_cuda or values.dtype != torch.float64):
        raise ValueError(
            f"{op}: {name} must be float16, bfloat16 or float32, on a CPU also float64; got {values.dtype}"
        )


def _check_values(op: str, name: str, values: Tensor, shape: tuple[int, ...], like: Tensor) -> None:
    _check_float(op, name, values)
    if values.shape != shape:
        raise ValueError(f"{op}: {name} must be {list(shape)}, got {list(values.shape)}")
    check_device(op, name, values, like)


def _check_factors(op: str, factors: Tensor | None, like: Tensor) -> None:
    if factors is not None:
        _check_values(op, "factors", factors, (len(like),), like)


def _check_weights(op: str, weights: ChannelWeights, like: Tensor) -> None:
    squeezed, channels = len(weights.down), like.shape[1]
    shapes = (channels,), (squeezed, channels), (squeezed,), (channels, squeezed), (channels,)
    for name, values, shape in zip(weights._fields, weights, shapes, strict=True):
        _check_values(op, name, values, shape if values.ndim < 4 else (*shape, 1, 1), like)


def _check_state(op: str, state: ChannelState, index: int, weights: ChannelWeights, like: Tensor) -> None:
    samples, channels = like.shape[:2]
    shapes = (samples, parts_of(like), channels), (samples, channels), (samples, len(weights.down)), (samples, channels)
    for values, shape in zip(state, shapes, strict=True):
        _check_place(op, values, index, shape, like)


def _shape_of_sums(x: Tensor) -> tuple[int, int]:
    return len(x) * parts_of(x), x.shape[1]


def _check_place(op: str, values: Tensor, index: int, shape: tuple[int, ...], like: Tensor) -> None:
    """Refuse a chain's tensor that has no place of this shape at the index."""
    dtype = accumulated(like.dtype)
    # A traced backward pass that asks for strides is given contiguous copies of its gradients.
    contiguous = torch.compiler.is_compiling() or values.is_contiguous()
    if values.dtype != dtype or values.shape[1:] != shape or not contiguous:
        raise ValueError(
            f"{op}: the chain's values must be contiguous {dtype} [blocks, {', '.join(map(str, shape))}], got "
            f"{values.dtype} {list(values.shape)} with strides {values.stride()}"
        )
    if not 0 <= index < len(values):
        raise ValueError(f"{op}: the index must be within the chain of {len(values)}, got {index}")
    check_device(op, "the chain's values", values, like)
