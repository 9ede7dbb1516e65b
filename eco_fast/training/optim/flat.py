"""Many tensors in one buffer: what concerns all of them is one operator, one launch, one exchange between ranks."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from eco_fast_kernels.checks import matches_layout
from torch import Tensor
from torch.nn import Parameter

VALUES_ALIGNED = 4  # float32 values: 16 bytes, which kernels read at a time


class FlatTensors(NamedTuple):
    """Tensors that lie one behind the other in a buffer; what is between them is zero."""

    buffer: Tensor
    """float32 [M]."""
    views: list[Tensor]
    """Each at a multiple of 16 bytes, of the shape and strides of the tensor that it stands for."""


def zeros_in_one_buffer(like: Sequence[Tensor], spare: int = 0) -> FlatTensors:
    """Zeros for each of the tensors, laid out like it, on its device.

    Args:
        like: dense, at least one.
        spare: further values behind the last of them, in the buffer alone.
    """
    *_, size = _offsets(like)
    buffer = torch.zeros(size + spare, device=like[0].device)
    return FlatTensors(buffer, views_of(buffer, like))


def views_of(buffer: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """The places of such tensors in a buffer, whatever its dtype."""
    *offsets, _ = _offsets(like)
    return [
        buffer.as_strided(tensor.shape, tensor.stride(), offset) for tensor, offset in zip(like, offsets, strict=True)
    ]


def laid_out_like(tensor: Tensor, like: Tensor) -> Tensor:
    """The tensor with the strides of another, dense one of its shape: itself or a view of it wherever it can be.

    Of such pairs, and no others, torch copies a whole list by a few launches.
    """
    if tensor.stride() == like.stride():
        return tensor
    if matches_layout(tensor, like):
        return tensor.as_strided(like.shape, like.stride())
    return torch.empty_like(like, dtype=tensor.dtype).copy_(tensor)


def _offsets(like: Sequence[Tensor]) -> list[int]:
    """Where each begins, and where the last one ends."""
    return list(accumulate((-(-tensor.numel() // VALUES_ALIGNED) * VALUES_ALIGNED for tensor in like), initial=0))


@torch.no_grad()
def move_into_one_buffer(parameters: Sequence[Parameter]) -> FlatTensors:
    """Let the parameters lie in one buffer, with the values that they have."""
    flat = zeros_in_one_buffer(parameters)
    for parameter, view in zip(parameters, flat.views, strict=True):
        view.copy_(parameter)
        parameter.data = view
    return flat
