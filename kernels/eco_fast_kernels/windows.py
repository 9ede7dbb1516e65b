"""How windows lie in memory, so that the kernels can read 16 bytes a thread.

A window is uint8 [H, W, 3] with a margin. Downsampling reads its rows from their beginning, the loss from behind the
margin; both begin at a multiple of 16 bytes if each row is preceded by `lead` unused bytes and rows are a multiple of
16 bytes apart:

    | lead | margin | target ... | margin | unused |      one row, `pitch` bytes
           ^ window starts
                    ^ multiple of 16

`lead` is 4, 14, 8 and 0 bytes at x2, x3, x4 and x8. The ops take contiguous windows too, and read those less widely.
"""

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes
CHANNELS = 3


def empty_windows(samples: int, side: int, margin: int) -> Tensor:
    """Memory for square windows: uint8 [samples, side, side, 3], a view into padded rows, on the CPU."""
    lead = -CHANNELS * margin % ALIGNMENT
    pitch = -(-(lead + CHANNELS * side) // ALIGNMENT) * ALIGNMENT
    padded = torch.zeros((samples, side, pitch), dtype=torch.uint8)
    return padded.as_strided((samples, side, side, CHANNELS), (side * pitch, pitch, CHANNELS, 1), lead)


def move_windows(windows: Tensor, device: str | torch.device) -> Tensor:
    """Windows on a device, padded as they are: `Tensor.to` would drop the unused bytes and with them the alignment."""
    if windows.device == torch.device(device):
        return windows
    start, lead = aligned_start(windows)
    samples, height, _, _ = windows.shape
    size = (samples * height - 1) * windows.stride(1) + row_bytes(windows, lead)
    moved = start.as_strided((size,), (1,)).to(device, non_blocking=True)
    return moved.as_strided(windows.shape, windows.stride(), lead)


def aligned_start(windows: Tensor) -> tuple[Tensor, int]:
    """The last multiple of 16 bytes before the windows, as a tensor that begins there, and the distance in bytes.

    Where that lies outside the windows' own memory, the windows themselves and 0.
    """
    lead = windows.data_ptr() % ALIGNMENT
    if lead > windows.storage_offset():
        return windows, 0
    return windows.as_strided((1,), (1,), windows.storage_offset() - lead), lead


def alike(first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
    """Two batches of windows of one shape that lie alike: as they are where they do, else as fresh copies."""
    if first.stride() == second.stride() and aligned_start(first)[1] == aligned_start(second)[1]:
        return first, second
    # `Tensor.contiguous` would return a batch's slice as it is, wherever it begins.
    packed = torch.contiguous_format
    return first.clone(memory_format=packed), second.clone(memory_format=packed)


def row_bytes(windows: Tensor, lead: int) -> int:
    """Bytes of a row from its aligned start on that may be read: whole multiples of 16 where padding follows."""
    used = lead + windows.shape[2] * windows.shape[3]
    padded = -(-used // ALIGNMENT) * ALIGNMENT
    samples, height, _, _ = windows.shape
    first = windows.storage_offset() - lead
    reaches = first + (samples * height - 1) * windows.stride(1) + padded <= windows.untyped_storage().nbytes()
    return padded if padded <= windows.stride(1) and reaches else used


def either(op: str, hr: Tensor | None, sr: Tensor | None) -> Tensor:
    """The one of two images that is there, hr first.

    Raises:
        ValueError: neither is.
    """
    present = hr if hr is not None else sr
    if present is None:
        raise ValueError(f"{op}: expected hr, sr or both, got neither")
    return present


def are_windows(tensor: Tensor) -> bool:
    """Whether a tensor is uint8 [N, H, W, C] whose rows are whole and evenly apart."""
    if tensor.dtype != torch.uint8 or tensor.ndim != 4:
        return False
    samples, height, width, channels = tensor.shape
    pitch = tensor.stride(1)
    whole = tensor.stride()[2:] == (channels, 1) and pitch >= width * channels
    return whole and (samples == 1 or tensor.stride(0) == height * pitch)
