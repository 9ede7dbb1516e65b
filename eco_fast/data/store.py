"""The store: every image decoded once, in large files of raw pixels that are mapped into memory.

    STORE/manifest.json             format, attributes, the packs with their sizes, the hash of the table and its own
    STORE/images-HASH.table         name, size, place and hashes of every image, as columns
    STORE/packs/00000.pack          uint8 [H, W, 3] of one image after the other
    STORE/centroids/x2-uint8-HASH/  the same again: the outputs of one teacher, at one scale

What a manifest names is never overwritten. The manifest is put in place last, in one step; until then a journal records
the finished images, so an interrupted run continues where it was and a reader never sees half a store.
"""

import contextlib
import copy
import ctypes
import hashlib
import json
import mmap
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, overload

import numpy as np
import torch

from eco_fast.data.images import Pixels
from eco_fast.data.packs import pack_file
from eco_fast.data.store_table import Entries
from eco_fast.utils.locks import file_lock

FORMAT = 2
MANIFEST = "manifest.json"
JOURNAL = "journal{}.jsonl"
SMALL_BYTES = 1 << 20
"""An image up to here is read from the disk as a whole. Left alone, the system reads as much around each page as the
disk is set to, often megabytes, of which a crop of a small image needs a hundredth; larger images are worth that."""
LIBC = ctypes.CDLL(None)


@dataclass
class Pack:
    """A pack that is open for reading; it is mapped when the first of its images is read."""

    path: Path
    size: int
    """In bytes, as the manifest has it."""
    memory: torch.Tensor | None = field(default=None, repr=False)

    def read(self, offset: int, height: int, width: int, *, whole: bool) -> Pixels:
        """An image, after a check that the file has its size; `whole`: all of its pixels are read next.

        Memory beyond the end of a mapped file kills the process (SIGBUS), with no word about the file. So does still
        a file that is cut short in the microseconds between this check and the reading.
        """
        try:
            size = os.stat(self.path).st_size  # noqa: PTH116 - once per crop: twice as fast as Path.stat
        except OSError as error:
            raise ValueError(f"{self.path}: the pack cannot be read any more ({error.strerror})") from error
        if size != self.size:
            raise ValueError(f"{self.path}: the pack has {size} bytes, it had {self.size} when it was written")
        if self.memory is None:
            self.memory = self._map()
        if whole or 3 * height * width <= SMALL_BYTES:
            _will_need(self.memory, offset, 3 * height * width)
        pixels: Pixels = self.memory[offset : offset + 3 * height * width].numpy().reshape(height, width, 3)
        pixels.flags.writeable = False
        return pixels

    def doubt(self) -> bool:
        """Let whoever writes the store next hash the pack, for its time is another; whether that could be done."""
        try:
            os.utime(self.path)
        except OSError:
            return False
        return True

    def _map(self) -> torch.Tensor:
        """Without keeping the file open: processes may hold fewer files than a large store has packs."""
        try:
            return torch.from_file(str(self.path), shared=False, size=self.size, dtype=torch.uint8)
        except RuntimeError as error:
            if "Cannot allocate memory" in str(error):
                raise ValueError(
                    f"{self.path}: the pack is whole, but the system maps no more files: its limit of memory "
                    "(ulimit -v, vm.overcommit_memory) or of maps (sysctl vm.max_map_count) is reached; raise it"
                ) from error
            raise ValueError(f"{self.path}: the pack cannot be read ({error})") from error


class StoredImages(Sequence[Pixels]):
    """The images of a store, uint8 [H, W, 3] each.

    Taking one checks that its pack has its size, and the first time that its pixels have their hash: bits that rot on a
    disk change no time.
    """

    def __init__(self, entries: Entries, packs: Mapping[int, Pack]) -> None:
        self._entries, self._packs = entries, packs
        self._columns = [entries.column(name) for name in ("pack", "offset", "height", "width")]
        self._hashes = entries.column("sha256")
        self._proven = np.zeros(len(entries), dtype=bool)

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Pixels: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Pixels]: ...
    def __getitem__(self, index: int | slice) -> Pixels | Sequence[Pixels]:
        """One image, or several.

        Raises:
            ValueError: its pack has been cut short or removed, or its pixels are not those that were written.
        """
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        number, offset, height, width = (int(column[index]) for column in self._columns)
        pack, proven = self._packs[number], self._proven[index]
        pixels = pack.read(offset, height, width, whole=not proven)
        if not proven:
            if hashlib.sha256(pixels.data).digest() != self._hashes[index].tobytes():
                raise ValueError(
                    f"{pack.path}: the stored {self._entries[index].name} is damaged; "
                    f"run the command that made it again{'' if pack.doubt() else ', with --verify'}"
                )
            self._proven[index] = True
        return pixels


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
            unfinished = bool(journals(folder))
            state = "an unfinished store; run the same command again to finish it" if unfinished else "not a store"
            raise ValueError(f"{folder}: {state} (no {MANIFEST})")
        self.attributes: dict[str, Any] = manifest["attributes"]
        self.entries = read_entries(folder, manifest)
        self._packs = {pack["number"]: _open_pack(folder, pack) for pack in manifest["packs"]}
        self.images = StoredImages(self.entries, self._packs)

    def __len__(self) -> int:
        return len(self.entries)

    def path(self, index: int) -> Path:
        """The pack of an image."""
        return self.folder / self.entries[index].file

    def read(self, index: int) -> Pixels:
        """One image, uint8 [H, W, 3]; raises as `StoredImages`."""
        return self.images[index]

    def select(self, names: Sequence[str]) -> Self:
        """The same store with these images alone, in this order."""
        own = self.entries.names()
        if own == names:
            return self
        index = {name: place for place, name in enumerate(own)}
        chosen = copy.copy(self)
        chosen.entries = self.entries.select([index[name] for name in names])
        chosen.images = StoredImages(chosen.entries, self._packs)
        return chosen


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
        ValueError: it is none, damaged, or of another format.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version, digest = manifest["format"], digest_of(manifest)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path}: not the manifest of a store") from error
    if version != FORMAT:
        raise ValueError(
            f"{path}: store format {version}, this version reads {FORMAT}; prepare the images again into another "
            "--store, or remove this one first"
        )
    if manifest.get("sha256") != digest:
        raise ValueError(f"{path}: damaged; restore the file, or remove the store and prepare the images again")
    return manifest


def digest_of(manifest: Mapping[str, Any]) -> str:
    """SHA-256 of all that a manifest says but when its packs were written: a wrong time costs a hash of the images."""
    packs = [{key: value for key, value in pack.items() if key != "written"} for pack in manifest.get("packs", [])]
    rest = {key: value for key, value in manifest.items() if key not in ("sha256", "packs")}
    return hashlib.sha256(json.dumps({**rest, "packs": packs}, sort_keys=True).encode()).hexdigest()


def read_entries(folder: Path, manifest: Mapping[str, Any]) -> Entries:
    """The table that a manifest names.

    Raises:
        ValueError: it is missing or damaged; names it.
    """
    path = folder / manifest["table"]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path}: the table of the store's images cannot be read ({error.strerror})") from error
    if hashlib.sha256(content).hexdigest() != manifest["table_sha256"]:
        raise ValueError(f"{path}: damaged; restore the file, or remove the store and prepare the images again")
    return Entries.decode(content, manifest["images"])


def journals(folder: Path) -> list[Path]:
    """Those of all ranks."""
    return sorted(folder.glob(JOURNAL.format("*")))


def _will_need(memory: torch.Tensor, offset: int, size: int) -> None:
    """Start reading this part of a map; advice, which may fail."""
    skip = offset % mmap.PAGESIZE
    address = ctypes.c_void_p(memory.data_ptr() + offset - skip)
    LIBC.madvise(address, ctypes.c_size_t(size + skip), mmap.MADV_WILLNEED)


def _open_pack(folder: Path, pack: Mapping[str, Any]) -> Pack:
    path = folder / pack_file(pack["number"])
    try:
        size = path.stat().st_size
    except OSError as error:
        raise ValueError(
            f"{path}: a pack of the store is missing ({error.strerror}); run the command that made it again"
        ) from error
    if size != pack["size"]:
        raise ValueError(
            f"{path}: a pack of the store has {size} bytes, expected {pack['size']}; run the command that made it again"
        )
    return Pack(path, size)
