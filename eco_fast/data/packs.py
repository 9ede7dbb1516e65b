"""Packs: files of raw pixels, in which a store says where each image lies. Nothing here needs torch.

Who lays out the images knows their sizes beforehand, so every image has its place before the first is decoded: any
number of processes may write them, in any order, and the files are the same.
"""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from eco_fast.utils.files import name_file_in_errors

PACK_BYTES = 1 << 29
"""A pack is at most as large, or holds one image alone: a terabyte is 2000 maps, of the 65 530 that Linux allows."""


def pack_file(number: int) -> str:
    """Path of a pack, relative to the store."""
    return f"packs/{number:05d}.pack"


def lay_out(sizes: Sequence[int], first: int) -> list[tuple[int, int]]:
    """(pack, offset) of images of these sizes in bytes, one after the other, in packs from number `first` on."""
    places, number, end = [], first, 0
    for size in sizes:
        if end and end + size > PACK_BYTES:
            number, end = number + 1, 0
        places.append((number, end))
        end += size
    return places


def write_pixels(path: Path, offset: int, pixels: npt.NDArray[np.uint8]) -> None:
    """Put an image into its place; it is on the disk only once the pack is synced."""
    left = np.ascontiguousarray(pixels).reshape(-1).data
    with name_file_in_errors(path):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o666)
        try:
            while left:  # a nearly full disk takes a part
                written = os.pwrite(descriptor, left, offset)
                left, offset = left[written:], offset + written
        finally:
            os.close(descriptor)


def is_intact(path: Path, offset: int, size: int, sha256: str) -> bool:
    """Whether `size` bytes at `offset` of a pack have this hash."""
    try:
        pixels = np.fromfile(path, dtype=np.uint8, count=size, offset=offset)
    except OSError:
        return False
    return hashlib.sha256(pixels.data).hexdigest() == sha256
