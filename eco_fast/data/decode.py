"""What the processes of `prepare` do with one image; nothing here needs torch, so that they start at once."""

import hashlib
from pathlib import Path
from typing import NamedTuple

from eco_fast.data.images import image_size, read_image
from eco_fast.data.packs import is_intact, write_pixels
from eco_fast.utils.files import sha256_of


class Stored(NamedTuple):
    """An image in a pack, to be hashed."""

    pack: Path
    offset: int
    size: int
    sha256: str


class Task(NamedTuple):
    """An image to be decoded into its place."""

    source: Path
    pack: Path
    offset: int
    size: int
    convert_16bit: bool


class Decoded(NamedTuple):
    """An image that is in its place."""

    shape: tuple[int, int]
    """Height and width."""
    sha256: str
    origin: str
    """SHA-256 of the source file."""


def still_intact(stored: Stored) -> bool:
    """Whether the pixels have the hash that they should."""
    return is_intact(*stored)


def pixel_bytes(source: Path) -> int:
    """Bytes of the pixels of an image, from its header alone; raises as `read_image`."""
    height, width = image_size(source)
    return 3 * height * width


def decode(task: Task) -> Decoded:
    """Decode an image into its pack.

    Raises:
        ValueError: as `read_image`; or the pixels are more or fewer than the header says.
    """
    origin = sha256_of(task.source)
    pixels = read_image(task.source, convert_16bit=task.convert_16bit)
    if pixels.nbytes != task.size:
        raise ValueError(f"{task.source}: changed while it was read, or has another size than its header says")
    write_pixels(task.pack, task.offset, pixels)
    return Decoded((pixels.shape[0], pixels.shape[1]), hashlib.sha256(pixels.data).hexdigest(), origin)
