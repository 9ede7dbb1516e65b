"""The store: every image decoded once, as memory-mapped uint8 arrays with a verified manifest.

    STORE/manifest.json           format, attributes, one entry per image
    STORE/images/HASH.npy         uint8 [H, W, 3]
    STORE/centroids/x2-uint8-HASH/  the same again: the outputs of one teacher, at one scale

Files are named after what they were made from and never overwritten. The manifest is put in place last, in one step;
until then a journal records the finished images, so an interrupted run continues where it was and a reader never sees
half a store.
"""

import contextlib
import copy
import hashlib
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch

from eco_fast.data.images import Pixels
from eco_fast.utils import distributed
from eco_fast.utils.files import (
    file_stamp,
    make_folder,
    name_file_in_errors,
    sync_folder,
    write_atomically,
    write_json,
    write_text,
)
from eco_fast.utils.locks import file_lock

FORMAT = 1
MANIFEST = "manifest.json"
JOURNAL = "journal{}.jsonl"


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image of a store."""

    name: str
    file: str
    """Path of the array, relative to the store."""
    height: int
    width: int
    sha256: str
    """Of the pixels."""
    origin: str
    """SHA-256 of what it was made from: the source file, or the HR pixels of a centroid."""
    stamp: str = ""
    """`file_stamp` of the source file: equal means unchanged, without reading it."""
    written: str = ""
    """`file_stamp` of the array's own file: equal means intact, without hashing it."""


class StoredImages(Sequence[Pixels]):
    """The images of a store; taking one checks that its file is still whole.

    Memory beyond the end of a mapped file kills the process (SIGBUS), with no word about the file. So does still a file
    that is cut short in the microseconds between this check and the reading.
    """

    def __init__(self, paths: Sequence[Path], images: Sequence[Pixels]) -> None:
        self.paths, self._images = list(paths), list(images)
        self._names = [str(path) for path in paths]
        self._bytes = [os.stat(name).st_size for name in self._names]  # noqa: PTH116 - as below

    def __len__(self) -> int:
        return len(self._images)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pixels]: ...
    def __getitem__(self, index: int | slice) -> Pixels | Sequence[Pixels]:
        """One image, or several.

        Raises:
            ValueError: its file has been cut short or removed; names it.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        name = self._names[index]
        try:
            size = os.stat(name).st_size  # noqa: PTH116 - once per crop: twice as fast as Path.stat
        except OSError as error:
            raise ValueError(f"{name}: the stored image cannot be read any more ({error.strerror})") from error
        if size != self._bytes[index]:
            raise ValueError(f"{name}: the stored image has {size} bytes, it had {self._bytes[index]} at the start")
        return self._images[index]

    def select(self, places: Sequence[int]) -> "StoredImages":
        """Some of them, in this order; the same memory."""
        return StoredImages([self.paths[place] for place in places], [self._images[place] for place in places])


class Store:
    """A finished store, opened for reading; an `ImageSource`.

    Raises:
        ValueError: missing, unfinished, of another format, or with a damaged file; names it.
    """

    encoded = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        manifest = read_manifest(folder)
        if manifest is None:
            unfinished = bool(_journals(folder))
            state = "an unfinished store; run the same command again to finish it" if unfinished else "not a store"
            raise ValueError(f"{folder}: {state} (no {MANIFEST})")
        self.attributes: dict[str, Any] = manifest["attributes"]
        self.entries = [Entry(**entry) for entry in manifest["entries"]]
        paths = [folder / entry.file for entry in self.entries]
        self.images = StoredImages(paths, [_map(folder, entry) for entry in self.entries])

    def __len__(self) -> int:
        return len(self.entries)

    def path(self, index: int) -> Path:
        """The file of an image's array."""
        return self.images.paths[index]

    def read(self, index: int) -> Pixels:
        """One image, uint8 [H, W, 3]; raises as `StoredImages`."""
        return self.images[index]

    def select(self, names: Sequence[str]) -> Self:
        """The same store with these images alone, in this order."""
        index = {entry.name: place for place, entry in enumerate(self.entries)}
        places = [index[name] for name in names]
        chosen = copy.copy(self)
        chosen.entries, chosen.images = [self.entries[place] for place in places], self.images.select(places)
        return chosen


class Writer:
    """Builds or updates a store; what is already there and unchanged is kept. Several ranks may add to one store.

    Args:
        folder: the store.
        attributes: what the whole store has in common, recorded in its manifest.
    """

    def __init__(self, folder: Path, attributes: Mapping[str, Any]) -> None:
        self.folder = folder
        self.attributes = dict(attributes)
        make_folder(folder / "images")
        manifest = read_manifest(folder)
        self.finished_names = {entry["name"] for entry in manifest["entries"]} if manifest else set()
        known = [*(manifest["entries"] if manifest else []), *_recover_journals(folder)]
        self.known = {entry["name"]: Entry(**entry) for entry in known}
        self.entries: list[Entry] = []

    def keep(self, name: str, *, origin: str, stamp: str = "", verify: bool = False) -> bool:
        """Keep the image of this name if it was made from `origin` and its array is intact.

        An array whose file has the size and modification time that it was written with is intact; one that differs,
        as after a copy to another disk, is hashed, and so is every one with `verify`.
        """
        entry = self.known.get(name)
        if entry is None or entry.origin != origin:
            return False
        path = self.folder / entry.file
        written = file_stamp(path) if path.is_file() else ""
        if (verify or written != entry.written) and not _intact(self.folder, entry):
            return False
        self._record(replace(entry, stamp=stamp, written=written))
        return True

    def add(self, name: str, pixels: Pixels, *, origin: str, stamp: str = "") -> None:
        """Write one image and note it in the journal."""
        file = f"images/{hashlib.sha256(f'{name} {origin}'.encode()).hexdigest()[:24]}.npy"
        pixels = np.ascontiguousarray(pixels)
        write_atomically(self.folder / file, lambda handle: np.save(handle, pixels))
        entry = Entry(
            name=name,
            file=file,
            height=pixels.shape[0],
            width=pixels.shape[1],
            sha256=hashlib.sha256(pixels.data).hexdigest(),
            origin=origin,
            stamp=stamp,
            written=file_stamp(self.folder / file),
        )
        self._record(entry)

    def finish(self, entries: Sequence[Entry] | None = None) -> None:
        """Put the manifest in place and remove what it no longer names; `entries` are those of all ranks, in order."""
        entries = self.entries if entries is None else entries
        manifest = {"format": FORMAT, "attributes": self.attributes, "entries": [asdict(one) for one in entries]}
        if read_manifest(self.folder) != manifest:
            write_json(self.folder / MANIFEST, manifest)
        for journal in _journals(self.folder):
            journal.unlink()
        named = {self.folder / entry.file for entry in entries}
        for file in (self.folder / "images").iterdir():
            if file not in named:
                file.unlink()
        sync_folder(self.folder)

    def _record(self, entry: Entry) -> None:
        self.entries.append(entry)
        if self.known.get(entry.name) == entry:
            return
        path = self.folder / JOURNAL.format(f"-{distributed.rank()}" if distributed.rank() else "")
        with name_file_in_errors(path), path.open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(asdict(entry)) + "\n")
            journal.flush()
            os.fsync(journal.fileno())


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a store for writing, if it can be written.

    Raises:
        ValueError: another process holds it; names that process.
    """
    with file_lock(folder / ".lock"):
        yield


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a finished store, or None.

    Raises:
        ValueError: it is none, or of another format.
    """
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = manifest["format"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: not the manifest of a store") from error
    if version != FORMAT:
        raise ValueError(f"{path}: store format {version}, this version reads {FORMAT}; run `eco-fast prepare` anew")
    return manifest


def _recover_journals(folder: Path) -> list[dict[str, Any]]:
    """What the journals of all ranks hold; the first rank to look mends them, before any writes."""
    found: list[dict[str, Any]] = []
    for path in _journals(folder):
        whole, newline, torn = path.read_text(encoding="utf-8").rpartition("\n")
        if torn:  # a kill cut the last line short: it was never finished, and the next one must not be glued to it
            write_text(path, whole + newline)
        found += [json.loads(line) for line in whole.splitlines()]
    return found


def _journals(folder: Path) -> list[Path]:
    return sorted(folder.glob(JOURNAL.format("*")))


def _map(folder: Path, entry: Entry) -> Pixels:
    """Map one array, read-only, without keeping its file open: processes may hold fewer files than stores do."""
    path = folder / entry.file
    try:
        with path.open("rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            start = file.tell()
        matches = shape == (entry.height, entry.width, 3) and dtype == np.uint8
        memory = torch.from_file(str(path), shared=False, size=start + math.prod(shape), dtype=torch.uint8)
    except (OSError, ValueError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path}: the stored {entry.name} is missing or damaged; run the same command again"
        ) from error
    if not matches:
        raise ValueError(f"{path}: the stored {entry.name} does not match the manifest; run `eco-fast prepare` again")
    pixels: Pixels = memory[start:].numpy().reshape(shape)
    pixels.flags.writeable = False
    return pixels


def _intact(folder: Path, entry: Entry) -> bool:
    try:
        pixels = _map(folder, entry)
    except ValueError:
        return False
    return hashlib.sha256(pixels.data).hexdigest() == entry.sha256
