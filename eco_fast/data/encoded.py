"""Image files that are decoded whenever a crop is cut from them, instead of once into a store."""

import copy
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Self

import numpy as np
import numpy.typing as npt

from eco_fast.data.images import simple_size
from eco_fast.utils import distributed
from eco_fast.utils.progress import track


@dataclass(frozen=True, kw_only=True)
class EncodedEntry:
    """One image file."""

    name: str
    path: Path
    height: int
    width: int
    size: int
    """Bytes of the file."""


class EncodedImages:
    """Image files, by the names that `find_images` gives them; an `ImageSource`.

    The first rank checks each of them to the last byte, for all ranks.

    Raises:
        ValueError: a file is no image, or one that decoders do not agree about; names it.
    """

    encoded = True

    def __init__(self, files: Mapping[str, Path]) -> None:
        self.entries = distributed.on_rank0(lambda: _inspect_all(files))

    def select(self, names: Sequence[str]) -> Self:
        """The same images with these alone, in this order."""
        index = {entry.name: entry for entry in self.entries}
        chosen = copy.copy(self)
        chosen.entries = [index[name] for name in names]
        return chosen

    def path(self, index: int) -> Path:
        """The file of an image."""
        return self.entries[index].path

    def read(self, index: int) -> npt.NDArray[np.uint8]:
        """The bytes of a file.

        Raises:
            ValueError: it cannot be read any more, or is not what it was; names it.
        """
        entry = self.entries[index]
        try:
            content = np.fromfile(entry.path, dtype=np.uint8)
        except OSError as error:
            raise ValueError(f"{entry.path}: the image cannot be read any more ({error.strerror})") from error
        if content.size != entry.size:
            raise ValueError(f"{entry.path}: the image has {content.size} bytes, it had {entry.size} at the start")
        return content


def match_centroids(hr: EncodedImages, centroids: EncodedImages, scale: int) -> EncodedImages:
    """The centroids' files in the order of the HR files: the same paths below their folders, in any format.

    Raises:
        ValueError: one is missing, ambiguous or of another size; names it.
    """
    found: dict[PurePosixPath, EncodedEntry] = {}
    for entry in centroids.entries:
        if other := found.get(_key(entry)):
            raise ValueError(f"data.centroids: {other.path} and {entry.path} are centroids of the same image")
        found[_key(entry)] = entry
    twins: dict[PurePosixPath, EncodedEntry] = {}
    for entry in hr.entries:
        if (twin := twins.setdefault(_key(entry), entry)) is not entry:
            raise ValueError(f"data.centroids: {twin.path} and {entry.path} would have the same centroid; rename one")
        centroid = found.get(_key(entry))
        if centroid is None:
            raise ValueError(f"data.centroids: holds no centroid of {entry.path}")
        expected = (entry.height // scale * scale, entry.width // scale * scale)
        if (centroid.height, centroid.width) != expected:
            raise ValueError(
                f"{centroid.path}: {centroid.width}x{centroid.height} pixels, but the centroid of {entry.path} at "
                f"x{scale} has {expected[1]}x{expected[0]}"
            )
    return centroids.select([found[_key(entry)].name for entry in hr.entries])


def _key(entry: EncodedEntry) -> PurePosixPath:
    _, _, path = entry.name.partition("/")
    return PurePosixPath(path).with_suffix("")


def _inspect_all(files: Mapping[str, Path]) -> list[EncodedEntry]:
    with ThreadPoolExecutor() as pool:  # decoders do not hold Python's lock
        return list(track(pool.map(_inspect, files, files.values()), "check images", len(files)))


def _inspect(name: str, path: Path) -> EncodedEntry:
    height, width = simple_size(path)
    return EncodedEntry(name=name, path=path, height=height, width=width, size=path.stat().st_size)
