"""Attention within windows: softmax(q k' / sqrt(d) + bias + mask) v for each window and head.

qkv   [B, T, 3*C]     B windows, those of an image one after the other, of T tokens; q, k, v, each of its heads in turn
bias  [heads, T, T]   of the relative positions
mask  [windows of an image, T, T] or None
out   [B, T, C]

torch's own kernels serve GPUs. On a CPU they take half the time of SwinIR's step, most of it for moving small matrices
about; there float32 takes window_attention.cpp instead, where a compiler can be found.
"""

import ctypes
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from eco_fast.device import cpp_compiler, why_not_compile

PARTS = 16  # as in window_attention.cpp
COMPILED = why_not_compile("cpu") is None


def attend(qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """As the module says; floating point, in the dtype of `qkv`."""
    if qkv.device.type == "cpu" and bias.dtype == torch.float32 and COMPILED:
        attended: Tensor = _attention(qkv.float().contiguous(), bias.contiguous(), mask)
        return attended.to(qkv.dtype)
    return attend_by_torch(qkv, bias, mask)


def attend_by_torch(qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """As `attend`, by torch's kernel that keeps the scores on the chip."""
    windows, tokens, channels = qkv.shape
    size = channels // 3 // len(bias)
    biases = bias[None] if mask is None else bias + mask[:, None]  # [windows of an image, heads, T, T]
    images = windows // len(biases)
    parts = qkv.view(images, len(biases), tokens, 3, len(bias), size).permute(3, 0, 1, 4, 2, 5)
    padding = -size % 8  # GPUs' kernels that take a bias want heads of a multiple of 8, or none of them runs
    # an image's windows count as heads, so that all images share the biases without a copy of them
    q, k, v = functional.pad(parts, (0, padding)).flatten(2, 3)
    biases = biases.to(q.dtype).flatten(0, 1).expand(images, -1, -1, -1)
    attended = functional.scaled_dot_product_attention(q, k, v, biases, scale=size**-0.5)
    return attended[..., :size].view(windows, len(bias), tokens, size).transpose(1, 2).flatten(2)


@torch.library.custom_op("eco_fast::window_attention", mutates_args=())
def _attention(qkv: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    out = qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3)
    _run("attend", [qkv, bias, mask, out], qkv, bias, mask)
    return out


@torch.library.custom_op("eco_fast::window_attention_backward", mutates_args=())
def _attention_backward(upstream: Tensor, qkv: Tensor, bias: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    of_qkv, of_bias = torch.empty_like(qkv), bias.new_empty(PARTS, *bias.shape)
    _run("attend_backward", [upstream.contiguous(), qkv, bias, mask, of_qkv, of_bias], qkv, bias, mask)
    return of_qkv, of_bias.sum(0)


def _run(function: str, tensors: list[Tensor | None], qkv: Tensor, bias: Tensor, mask: Tensor | None) -> None:
    windows, tokens, channels = qkv.shape
    heads, masks = len(bias), 1 if mask is None else len(mask)
    size = channels // 3 // heads
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    counts = [ctypes.c_long(count) for count in (windows, heads, masks)]
    call = getattr(_library(tokens, size), function)
    call(*pointers, *counts, ctypes.c_float(size**-0.5), ctypes.c_int(torch.get_num_threads()))


@cache
def _library(tokens: int, size: int) -> ctypes.CDLL:
    """The compiled functions for windows of so many tokens and heads of so many channels; a second's work.

    Raises:
        RuntimeError: the compiler fails; with what it says.
    """
    source = Path(__file__).with_suffix(".cpp")
    options = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared"]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "window_attention.so"
        command = [str(cpp_compiler()), *options, f"-DTOKENS={tokens}", f"-DSIZE={size}", str(source), "-o", str(out)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {result.stderr}")
        return ctypes.CDLL(str(out))


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001 - torch names them
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    of_qkv, of_bias = _attention_backward(upstream, *ctx.saved_tensors)
    return of_qkv, of_bias, None


_attention.register_fake(lambda qkv, *_: qkv.new_empty(*qkv.shape[:2], qkv.shape[2] // 3))
_attention_backward.register_fake(lambda _, qkv, bias, mask: (torch.empty_like(qkv), torch.empty_like(bias)))  # noqa: ARG005 - its name
_attention.register_autograd(_gradients, setup_context=_save)
