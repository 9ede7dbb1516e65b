"""Making and updating a store; what is there and unchanged is kept. Several processes may write its images."""

import contextlib
import errno
import hashlib
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from eco_fast.data.images import Pixels
from eco_fast.data.packs import lay_out, pack_file, write_pixels
from eco_fast.data.store import FORMAT, JOURNAL, MANIFEST, digest_of, journals, read_entries, read_manifest
from eco_fast.data.store_table import ROW, Entries, Entry, Rows, set_row
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

JOURNAL_SECONDS = 1.0
"""What is older than this is on the disk and noted; a power cut costs no more."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """An image that the store is to hold."""

    name: str
    size: int
    """Bytes of its pixels."""
    origin: str
    """See `Entry`; empty where only making it tells."""
    stamp: str = ""


class Writer:
    """Builds or updates a store; a context manager that notes what is made, however the block ends.

    First `plan`, then `add` or `note` for each image that is missing, in any order; then `finish`, on one rank.

    Args:
        folder: the store.
        attributes: what the whole store has in common, recorded in its manifest.
    """

    def __init__(self, folder: Path, attributes: Mapping[str, Any]) -> None:
        self.folder, self.attributes = folder, dict(attributes)
        self._manifest = read_manifest(folder)
        self._finished = read_entries(folder, self._manifest) if self._manifest else Entries.of(np.zeros(0, ROW), [])
        self._place = {name: place for place, name in enumerate(self._finished.names())}
        self._journaled = _recover_journals(folder)
        self._wanted: Sequence[Wanted] = []
        self._pending: list[Entry] = []
        self._synced = time.monotonic()
        self.rows: Rows = np.zeros(0, ROW)
        """One per image that is wanted; those of images that are still missing have only their places."""
        self.added: list[int] = []
        """Which of them this process has made."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with contextlib.suppress(OSError) if kind else contextlib.nullcontext():  # a full disk has been told of
            self.sync()

    @property
    def finished_names(self) -> set[str]:
        """Those of the finished store."""
        return set(self._place)

    def known(self, name: str) -> Entry | None:
        """The image of this name, as it was made last."""
        if name in self._journaled:
            return self._journaled[name]
        return self._finished[self._place[name]] if name in self._place else None

    def doubtful(self, *, verify: bool) -> list[Entry]:
        """The images to hash before they are kept: those of an interrupted run, and of packs that have changed.

        A pack that has the size and modification time that it was written with is intact; one that differs, as after
        a copy to another disk, is hashed, and so is every one with `verify`.
        """
        packs = [] if self._manifest is None else self._manifest["packs"]
        changed = [one["number"] for one in packs if verify or self._stamp(one["number"]) != one["written"]]
        places = np.flatnonzero(np.isin(self._finished.column("pack"), changed)).tolist()
        finished = [self._finished[place] for place in places]
        return [*self._journaled.values(), *(one for one in finished if one.name not in self._journaled)]

    def plan(self, wanted: Sequence[Wanted], damaged: Sequence[str] = ()) -> list[int]:
        """Give every image its place.

        Args:
            wanted: all images of the store, in order.
            damaged: names of those that are known, but are to be made again.

        Returns:
            Indices of the images that are missing.
        """
        self._wanted = wanted
        self.rows = np.zeros(len(wanted), ROW)
        again = set(damaged)
        kept: dict[int, Entry] = {}
        for index, one in enumerate(wanted):
            entry = None if one.name in again else self.known(one.name)
            if entry is not None and one.origin == entry.origin:
                kept[index] = replace(entry, stamp=one.stamp)
        journaled = {index for index, entry in kept.items() if entry.name in self._journaled}
        new = [index for index in range(len(wanted)) if index not in kept or index in journaled]
        first = max([-1, *np.unique(self._finished.column("pack")).tolist()]) + 1
        places = dict(zip(new, lay_out([wanted[index].size for index in new], first), strict=True))
        if any(places[index] != (kept[index].pack, kept[index].offset) for index in journaled):
            # Other images are wanted than before the interruption: what it has made keeps its place.
            first = max([first, *(kept[index].pack + 1 for index in journaled)])
            new = [index for index in new if index not in journaled]
            places = dict(zip(new, lay_out([wanted[index].size for index in new], first), strict=True))
        for index, entry in kept.items():
            set_row(self.rows, index, entry)
        missing = [index for index in new if index not in kept]
        for index in missing:
            self.rows["pack"][index], self.rows["offset"][index] = places[index]
        if missing:
            make_folder(self.folder / Path(pack_file(0)).parent)
        return missing

    def place(self, index: int) -> tuple[Path, int]:
        """The pack of an image, and its offset there."""
        return self.folder / pack_file(int(self.rows["pack"][index])), int(self.rows["offset"][index])

    def add(self, index: int, pixels: Pixels) -> None:
        """Write a missing image, whose origin is known, and note it."""
        path, offset = self.place(index)
        write_pixels(path, offset, pixels)
        digest = hashlib.sha256(np.ascontiguousarray(pixels).data).hexdigest()
        self.note(index, pixels.shape[:2], digest, self._wanted[index].origin)

    def note(self, index: int, size: tuple[int, ...], sha256: str, origin: str) -> None:
        """Note a missing image that is in its place."""
        one, (height, width) = self._wanted[index], size
        assert 3 * height * width == one.size, "images are laid out by their sizes"
        row = self.rows[index]
        entry = Entry(
            name=one.name,
            pack=int(row["pack"]),
            offset=int(row["offset"]),
            height=height,
            width=width,
            sha256=sha256,
            origin=origin,
            stamp=one.stamp,
        )
        set_row(self.rows, index, entry)
        self.added.append(index)
        self._pending.append(entry)
        if time.monotonic() - self._synced > JOURNAL_SECONDS:
            self.sync()

    def sync(self) -> None:
        """Make what was noted survive a power cut: first the pixels, then the journal."""
        if not self._pending:
            return
        packs = [self.folder / pack_file(number) for number in sorted({entry.pack for entry in self._pending})]
        for pack in packs:
            _sync_file(pack)
        sync_folder(packs[0].parent)
        path = self.folder / JOURNAL.format(f"-{distributed.rank()}" if distributed.rank() else "")
        with name_file_in_errors(path), path.open("a", encoding="utf-8") as journal:
            journal.write("".join(_journal_line(entry) for entry in self._pending))
            journal.flush()
            os.fsync(journal.fileno())
        sync_folder(self.folder)
        self._pending.clear()
        self._synced = time.monotonic()

    def finish(self) -> None:
        """Put the manifest in place and remove what it no longer names; `rows` hold the work of all ranks."""
        self.sync()
        numbers = np.unique(self.rows["pack"]).tolist()
        packs = [self._describe(number) for number in numbers]
        content = Entries.of(self.rows, [one.name for one in self._wanted]).encode()
        digest = hashlib.sha256(content).hexdigest()
        table = self.folder / f"images-{digest[:16]}.table"
        manifest = {
            "format": FORMAT,
            "attributes": self.attributes,
            "images": len(self._wanted),
            "table": table.name,
            "table_sha256": digest,
            "packs": packs,
        }
        manifest["sha256"] = digest_of(manifest)
        if manifest != self._manifest:
            # Of a copy that only its owner can write, the times alone are new: then it is hashed by whoever reads it.
            same = self._manifest is not None and manifest["sha256"] == self._manifest["sha256"]
            with _unless_read_only() if same else contextlib.nullcontext():
                if not same:
                    write_atomically(table, lambda file: file.write(content))
                write_json(self.folder / MANIFEST, manifest)
        self._tidy({table, *(self.folder / pack_file(number) for number in numbers)})

    def _describe(self, number: int) -> dict[str, Any]:
        """What the manifest says of a pack."""
        path = self.folder / pack_file(number)
        if number not in self._finished.column("pack"):
            rows = self.rows[self.rows["pack"] == number]
            end = int((rows["offset"] + 3 * rows["height"].astype(np.int64) * rows["width"]).max())
            if path.stat().st_size != end:  # an interrupted run had other images there
                os.truncate(path, end)
            sync_folder(path.parent)
        return {"number": number, "size": path.stat().st_size, "written": file_stamp(path)}

    def _tidy(self, named: set[Path]) -> None:
        found = [*self.folder.glob("packs/*.pack"), *self.folder.glob("images-*.table"), *journals(self.folder)]
        left_over = [file for file in found if file not in named and file.is_file()]
        for file in left_over:
            file.unlink()
        if left_over:
            sync_folder(self.folder)

    def _stamp(self, number: int) -> str:
        path = self.folder / pack_file(number)
        return file_stamp(path) if path.is_file() else ""


@contextlib.contextmanager
def _unless_read_only() -> Any:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise


def _sync_file(path: Path) -> None:
    with name_file_in_errors(path), path.open("rb+") as file:
        os.fsync(file.fileno())


def _journal_line(entry: Entry) -> str:
    text = json.dumps(asdict(entry))
    return f"{hashlib.sha256(text.encode()).hexdigest()[:16]} {text}\n"


def _recover_journals(folder: Path) -> dict[str, Entry]:
    """What the journals of all ranks hold; the first rank to look mends them, before any writes."""
    found: dict[str, Entry] = {}
    for path in journals(folder):
        content = path.read_bytes()
        lines = content.decode("utf-8", "replace").splitlines(keepends=True)
        # A kill cut the last line short, or a disk damaged one: such images were never finished.
        whole = [line for line in lines if line.endswith("\n") and _is_whole(line)]
        if whole != lines:
            write_text(path, "".join(whole))
        for line in whole:
            entry = Entry(**json.loads(line[17:]))
            found[entry.name] = entry
    return found


def _is_whole(line: str) -> bool:
    return hashlib.sha256(line[17:-1].encode()).hexdigest()[:16] == line[:16] and line[16] == " "
