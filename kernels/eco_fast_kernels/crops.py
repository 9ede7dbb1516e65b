"""How crops lie in memory, so that the kernels can read 16 bytes a thread.

A crop is uint8 [H, W, 3] with a margin. Downsampling reads its rows from their beginning, the loss from behind the
margin; both begin at a multiple of 16 bytes if each row is preceded by `lead` unused bytes and rows are a multiple of
16 bytes apart:

    | lead | margin | target ... | margin | unused |      one row, `pitch` bytes
           ^ crop starts
                    ^ multiple of 16

`lead` is 4, 14, 8 and 0 bytes at x2, x3, x4 and x8. The ops take contiguous crops too, and read those less widely.
"""

from enum import IntEnum, IntFlag

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes
CHANNELS = 3


class PlanColumn(IntEnum):
    """The columns of the plan by which `cut_crops` cuts, int64 [N, 7]."""

    OFFSET = 0
    """Of the image's first byte."""
    ROW_BYTES = 1
    """Bytes from row to row of the image."""
    HEIGHT = 2
    """Of the image in pixels, cropped to a multiple of the scale: D's border is there."""
    WIDTH = 3
    """Likewise."""
    TOP = 4
    """The image's row where the crop begins, margin included; negative above the image."""
    LEFT = 5
    """Likewise its column."""
    ORIENTATION = 6
    """A sum of `Orientation`."""


class Orientation(IntFlag):
    """What is done to a crop, in this order."""

    FLIP_ROWS = 1
    FLIP_COLUMNS = 2
    TRANSPOSE = 4


def empty_crops(samples: int, side: int, margin: int) -> Tensor:
    """Memory for square crops: uint8 [samples, side, side, 3], a view into padded rows, on the CPU."""
    lead, pitch = padded_row(side, margin)
    return as_crops(torch.zeros((samples, side, pitch), dtype=torch.uint8), lead)


def padded_row(side: int, margin: int) -> tuple[int, int]:
    """Of the rows of square crops: the unused bytes before the first pixel, and the bytes from row to row."""
    lead = -CHANNELS * margin % ALIGNMENT
    return lead, -(-(lead + CHANNELS * side) // ALIGNMENT) * ALIGNMENT


def as_crops(padded: Tensor, lead: int) -> Tensor:
    """The crops [N, side, side, 3] in padded rows [N, side, pitch]."""
    samples, side, pitch = padded.shape
    return padded.as_strided((samples, side, side, CHANNELS), (side * pitch, pitch, CHANNELS, 1), lead)


def move_crops(crops: Tensor, device: str | torch.device) -> Tensor:
    """Crops on a device, padded as they are: `Tensor.to` would drop the unused bytes and with them the alignment."""
    if crops.device == torch.device(device):
        return crops
    start, lead = aligned_start(crops)
    samples, height, _, _ = crops.shape
    size = (samples * height - 1) * crops.stride(1) + row_bytes(crops, lead)
    moved = start.as_strided((size,), (1,)).to(device, non_blocking=True)
    return moved.as_strided(crops.shape, crops.stride(), lead)


def aligned_start(crops: Tensor) -> tuple[Tensor, int]:
    """The last multiple of 16 bytes before the crops, as a tensor that begins there, and the distance in bytes.

    Where that lies outside the crops' own memory, the crops themselves and 0.
    """
    lead = crops.data_ptr() % ALIGNMENT
    if lead > crops.storage_offset():
        return crops, 0
    return crops.as_strided((1,), (1,), crops.storage_offset() - lead), lead


def with_same_layout(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of crops of one shape in one layout: as they are where it is the same, else as fresh copies."""
    if first.stride() == second.stride() and aligned_start(first)[1] == aligned_start(second)[1]:
        return first, second
    # `Tensor.contiguous` would return a batch's slice as it is, wherever it begins.
    packed = torch.contiguous_format
    return first.clone(memory_format=packed), second.clone(memory_format=packed)


def row_bytes(crops: Tensor, lead: int) -> int:
    """Bytes of a row from its aligned start on that may be read: whole multiples of 16 where padding follows."""
    used = lead + crops.shape[2] * crops.shape[3]
    padded = -(-used // ALIGNMENT) * ALIGNMENT
    samples, height, _, _ = crops.shape
    first = crops.storage_offset() - lead
    reaches = first + (samples * height - 1) * crops.stride(1) + padded <= crops.untyped_storage().nbytes()
    return padded if padded <= crops.stride(1) and reaches else used


def first_present(op: str, hr: Tensor | None, sr: Tensor | None) -> Tensor:
    """The one of two images that is there, hr first.

    Raises:
        ValueError: neither is.
    """
    present = hr if hr is not None else sr
    if present is None:
        raise ValueError(f"{op}: expected hr, sr or both, got neither")
    return present


def are_crops(tensor: Tensor) -> bool:
    """Whether a tensor is uint8 [N, H, W, C] whose rows are whole and evenly apart."""
    if tensor.dtype != torch.uint8 or tensor.ndim != 4:
        return False
    samples, height, width, channels = tensor.shape
    pitch = tensor.stride(1)
    whole = tensor.stride()[2:] == (channels, 1) and pitch >= width * channels
    return whole and (samples == 1 or tensor.stride(0) == height * pitch)
