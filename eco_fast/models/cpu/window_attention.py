"""Attention within the windows of images: softmax(q k' / sqrt(d) + bias + mask) v for each window and head.

qkv   [N, h, w, 3*C]  the images' tokens; q, k, v, each of its heads in turn; h and w are multiples of the window
bias  [heads, T, T]   of the relative positions of a window's T tokens
mask  [windows of an image, T, T] or None
out   [N, h, w, C]

The windows' grid begins at (shift, shift), and goes on at the other side of the image. GPUs use torch's SDPA. On a CPU
that attention takes half of SwinIR's step, most of it to move small matrices about; there float32 takes
window_attention.cpp instead, where it can be compiled.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eco_fast.models.cpu.build import PARTS, available, call


def attend(qkv: Tensor, bias: Tensor, mask: Tensor | None, window: int, shift: int) -> Tensor:
    """As the module says; floating point, in the dtype of `qkv`."""
    on_cpu = qkv.device.type == "cpu" and bias.dtype == torch.float32
    if on_cpu and available("window_attention", **_sizes(qkv, bias, window)):
        # the kernel has a row for each key where the contract has one for each query
        by_key = [None if matrix is None else matrix.mT.contiguous() for matrix in (bias, mask)]
        attended: Tensor = _attention(qkv.float().contiguous(), *by_key, window, shift)
        return attended.to(qkv.dtype)
    return attend_by_torch(qkv, bias, mask, window, shift)


def attend_by_torch(qkv: Tensor, bias: Tensor, mask: Tensor | None, window: int, shift: int) -> Tensor:
    """As `attend`, by torch's kernel that keeps the scores on the chip."""
    count, height, width, channels = qkv.shape
    size, tokens = channels // 3 // len(bias), window**2
    biases = bias[None] if mask is None else bias + mask[:, None]  # [windows of an image, heads, T, T]
    windows = cut(qkv.roll((-shift, -shift), (1, 2)) if shift else qkv, window)
    images = len(windows) // len(biases)
    parts = windows.reshape(images, len(biases), tokens, 3, len(bias), size).permute(3, 0, 1, 4, 2, 5)
    padding = -size % 8  # GPUs' kernels that take a bias want heads of a multiple of 8, or none of them runs
    # an image's windows count as heads, so that all images share the biases without a copy of them
    q, k, v = functional.pad(parts, (0, padding)).flatten(2, 3)
    biases = biases.to(q.dtype).flatten(0, 1).expand(images, -1, -1, -1)
    attended = functional.scaled_dot_product_attention(q, k, v, biases, scale=size**-0.5)
    # each of torch's kernels lays its output out as it likes: some keep a token's heads together
    attended = attended[..., :size].reshape(-1, len(bias), tokens, size).transpose(1, 2)
    joined = join(attended.reshape(-1, window, window, channels // 3), (count, height, width, channels // 3))
    return joined.roll((shift, shift), (1, 2)) if shift else joined


def cut(x: Tensor, window: int) -> Tensor:
    """The windows of images [N, h, w, C]: [B, window, window, C]."""
    count, height, width, channels = x.shape
    x = x.reshape(count, height // window, window, width // window, window, channels)
    return x.transpose(2, 3).reshape(-1, window, window, channels)


def join(windows: Tensor, shape: Sequence[int]) -> Tensor:
    """The inverse of `cut`."""
    count, height, width, channels = shape
    window = windows.shape[1]
    x = windows.view(count, height // window, width // window, window, window, channels)
    return x.transpose(2, 3).reshape(shape)


@torch.library.custom_op("eco_fast::window_attention", mutates_args=())
def _attention(qkv: Tensor, bias: Tensor, mask: Tensor | None, window: int, shift: int) -> Tensor:
    out = qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3)
    _run("attend", [qkv, bias, mask, out], qkv, bias, window, shift)
    return out


@torch.library.custom_op("eco_fast::window_attention_backward", mutates_args=())
def _attention_backward(
    upstream: Tensor, qkv: Tensor, bias: Tensor, mask: Tensor | None, window: int, shift: int
) -> tuple[Tensor, Tensor]:
    of_qkv, of_bias = torch.empty_like(qkv), bias.new_empty(PARTS, *bias.shape)
    _run("attend_backward", [upstream.contiguous(), qkv, bias, mask, of_qkv, of_bias], qkv, bias, window, shift, PARTS)
    return of_qkv, of_bias.sum(0)


def _run(
    function: str, tensors: list[Tensor | None], qkv: Tensor, bias: Tensor, window: int, shift: int, *more: int
) -> None:
    count, height, width, _ = qkv.shape
    numbers = (count, height, width, shift, len(bias), *more)
    call("window_attention", function, tensors, numbers, **_sizes(qkv, bias, window))


def _sizes(qkv: Tensor, bias: Tensor, window: int) -> dict[str, int]:
    """What the C++ is compiled for: a window's side, and the channels of a head."""
    return {"WINDOW": window, "SIZE": qkv.shape[3] // 3 // len(bias)}


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names them
    *tensors, ctx.window, ctx.shift = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    of_qkv, of_bias = _attention_backward(upstream, *ctx.saved_tensors, ctx.window, ctx.shift)
    return of_qkv, of_bias, None, None, None


_attention.register_fake(lambda qkv, *_: qkv.new_empty(*qkv.shape[:3], qkv.shape[3] // 3))
_attention_backward.register_fake(lambda upstream, qkv, bias, *_: (torch.empty_like(qkv), torch.empty_like(bias)))  # noqa: ARG005 - its name
_attention.register_autograd(_gradients, setup_context=_save)
