"""Where crops come from: the arrays of a store, or image files that DALI decodes at every step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
import numpy.typing as npt


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


def sizes_of(source: ImageSource) -> list[tuple[int, int]]:
    """(height, width) of every image."""
    return [(entry.height, entry.width) for entry in source.entries]


def without_small(source: Source, scale: int, patch: int, *, skip: bool) -> Source:
    """The images that an HR patch fits into; smaller ones are refused unless `skip`.

    Raises:
        ValueError: an image is smaller than a patch; names the first.
    """
    side = scale * patch
    small = [entry for entry in source.entries if min(entry.height, entry.width) // scale < patch]
    count = len(source.entries)
    if small and not skip:
        raise ValueError(
            f"{small[0].name} is {small[0].width}x{small[0].height} pixels, smaller than an HR patch of {side}x{side} "
            f"({len(small)} such images); remove it, lower data.patch, or --set data.on_small_image=skip"
        )
    if len(small) == count:
        raise ValueError(f"all {count} images are smaller than an HR patch of {side}x{side}")
    if not small:
        return source
    print(f"{len(small)} of {count} images are smaller than an HR patch of {side}x{side} and left out", flush=True)
    return source.select([entry.name for entry in source.entries if entry not in small])
