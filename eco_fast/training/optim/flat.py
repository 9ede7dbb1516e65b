"""Many tensors in one buffer: what concerns all of them is one operator, one launch, one exchange between ranks."""

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

ALIGNMENT = 4  # float32 values: 16 bytes, which kernels read at a time


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
    sizes = [-(-tensor.numel() // ALIGNMENT) * ALIGNMENT for tensor in like]
    *offsets, size = accumulate(sizes, initial=0)
    buffer = torch.zeros(size + spare, device=like[0].device)
    views = [
        buffer.as_strided(tensor.shape, tensor.stride(), offset) for tensor, offset in zip(like, offsets, strict=True)
    ]
    return FlatTensors(buffer, views)


@torch.no_grad()
def move_into_one_buffer(parameters: Sequence[Parameter]) -> FlatTensors:
    """Let the parameters lie in one buffer, with the values that they have."""
    flat = zeros_in_one_buffer(parameters)
    for parameter, view in zip(parameters, flat.views, strict=True):
        view.copy_(parameter)
        parameter.data = view
    return flat
