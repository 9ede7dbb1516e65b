"""Where crops come from: the arrays of a store, or image files that DALI decodes at every step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt

from eco_fast.data.store_table import Entries


class ImageEntry(Protocol):
    """What a source says of one of its images."""

    @property
    def name(self) -> str:
        """As `find_images` has it."""

    @property
    def height(self) -> int:
        """In pixels."""

    @property
    def width(self) -> int:
        """In pixels."""


class ImageSource(Protocol):
    """The training images, or their centroids, in one order."""

    @property
    def encoded(self) -> bool:
        """Whether `read` gives the bytes of a file, uint8 [bytes], instead of pixels, uint8 [H, W, 3]."""

    @property
    def entries(self) -> Sequence[ImageEntry]:
        """One per image."""

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """One image.

        Raises:
            ValueError: it cannot be read any more, or is not what it was; names it.
        """

    def path(self, index: int) -> Path:
        """The file that it is read from."""

    def select(self, names: Sequence[str]) -> Self:
        """The same source with these images alone, in this order."""


Source = TypeVar("Source", bound=ImageSource)


def sizes_of(source: ImageSource) -> npt.NDArray[np.int64]:
    """(height, width) of every image, int64 [N, 2]."""
    if isinstance(source.entries, Entries):  # of a store, which may hold a million
        return source.entries.sizes()
    return np.array([(entry.height, entry.width) for entry in source.entries], dtype=np.int64).reshape(-1, 2)


def names_of(source: ImageSource) -> list[str]:
    """The name of every image."""
    return source.entries.names() if isinstance(source.entries, Entries) else [one.name for one in source.entries]


def without_small(source: Source, scale: int, patch: int, *, skip: bool) -> Source:
    """The images that an HR patch fits into; smaller ones are refused unless `skip`.

    Raises:
        ValueError: an image is smaller than a patch; names the first.
    """
    side = scale * patch
    is_small = sizes_of(source).min(axis=1) // scale < patch
    small, count = np.flatnonzero(is_small).tolist(), len(is_small)
    if small and not skip:
        first = source.entries[small[0]]
        raise ValueError(
            f"{first.name} is {first.width}x{first.height} pixels, smaller than an HR patch of {side}x{side} "
            f"({len(small)} such images); remove it, lower data.patch, or add --data.on_small_image skip"
        )
    if len(small) == count:
        raise ValueError(f"all {count} images are smaller than an HR patch of {side}x{side}")
    if not small:
        return source
    print(f"{len(small)} of {count} images are smaller than an HR patch of {side}x{side} and left out", flush=True)
    return source.select([name for name, left_out in zip(names_of(source), is_small, strict=True) if not left_out])
