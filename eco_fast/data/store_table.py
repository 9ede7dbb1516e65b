"""What a store says of its images, as columns: a million of them are 130 MB on the disk and no object each."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self, overload

import numpy as np
import numpy.typing as npt

from eco_fast.data.packs import pack_file

ROW = np.dtype(
    [
        ("offset", "<i8"),
        ("pack", "<i4"),
        ("height", "<i4"),
        ("width", "<i4"),
        ("sha256", "u1", (32,)),
        ("origin", "u1", (32,)),
        ("stamp", "<i8", (2,)),
    ]
)
Rows = npt.NDArray[np.void]


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One image of a store."""

    name: str
    pack: int
    """Number of the pack that it lies in."""
    offset: int
    """Of its first byte in the pack."""
    height: int
    width: int
    sha256: str
    """Of the pixels."""
    origin: str
    """SHA-256 of what it was made from: the source file, or the HR pixels of a centroid."""
    stamp: str = ""
    """`file_stamp` of the source file: equal means unchanged, without reading it."""

    @property
    def file(self) -> str:
        """Path of the pack, relative to the store."""
        return pack_file(self.pack)

    @property
    def size(self) -> int:
        """Bytes of the pixels."""
        return 3 * self.height * self.width


class Entries(Sequence[Entry]):
    """The entries of a store.

    Args:
        rows: of dtype ROW.
        names: their names, each followed by a zero byte; as the file system has them.
        order: indices of the entries among the rows; None: all, as they are.
    """

    def __init__(self, rows: Rows, names: bytes, order: npt.NDArray[np.int64] | None = None) -> None:
        self._rows, self._names, self._order = rows, names, order
        self._ends = np.flatnonzero(np.frombuffer(names, dtype=np.uint8) == 0)
        if len(self._ends) != len(rows):
            raise ValueError(f"{len(rows)} rows, but {len(self._ends)} names")

    @classmethod
    def of(cls, rows: Rows, names: Iterable[str]) -> Self:
        """Entries of these names."""
        return cls(rows, "".join(f"{name}\0" for name in names).encode("utf-8", "surrogateescape"))

    @classmethod
    def decode(cls, content: bytes, count: int) -> Self:
        """What `encode` made of this many entries."""
        size = count * ROW.itemsize
        return cls(np.frombuffer(content, dtype=ROW, count=count), content[size:])

    def encode(self) -> bytes:
        """All rows, then all names."""
        assert self._order is None, "a selection is never written"
        return self._rows.tobytes() + self._names

    def __len__(self) -> int:
        return len(self._rows if self._order is None else self._order)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Entry]: ...
    def __getitem__(self, index: int | slice) -> Entry | Sequence[Entry]:
        if isinstance(index, slice):
            return [self[place] for place in range(len(self))[index]]
        place = range(len(self))[index] if self._order is None else int(self._order[index])
        row = self._rows[place]
        begin = int(self._ends[place - 1]) + 1 if place else 0
        size, time = row["stamp"].tolist()
        return Entry(
            name=self._names[begin : int(self._ends[place])].decode("utf-8", "surrogateescape"),
            pack=int(row["pack"]),
            offset=int(row["offset"]),
            height=int(row["height"]),
            width=int(row["width"]),
            sha256=row["sha256"].tobytes().hex(),
            origin=row["origin"].tobytes().hex(),
            stamp=f"{size} {time}" if size >= 0 else "",
        )

    def column(self, name: str) -> npt.NDArray[Any]:
        """One field of all entries, as ROW has it."""
        values = self._rows[name]
        return values if self._order is None else values[self._order]

    def names(self) -> list[str]:
        """Of all entries."""
        names = self._names.decode("utf-8", "surrogateescape").split("\0")
        return names[:-1] if self._order is None else [names[place] for place in self._order]

    def sizes(self) -> npt.NDArray[np.int64]:
        """(height, width) of all entries, int64 [N, 2]."""
        return np.stack([self.column("height"), self.column("width")], axis=1).astype(np.int64)

    def select(self, places: Sequence[int] | npt.NDArray[np.int64]) -> Self:
        """Some of them, in this order; the same memory."""
        chosen = np.asarray(places, dtype=np.int64)
        return type(self)(self._rows, self._names, chosen if self._order is None else self._order[chosen])


def set_row(rows: Rows, index: int, entry: Entry) -> None:
    """Write what an entry says, but for its name, into a row."""
    rows[index] = (
        entry.offset,
        entry.pack,
        entry.height,
        entry.width,
        tuple(bytes.fromhex(entry.sha256)),
        tuple(bytes.fromhex(entry.origin)),
        tuple(map(int, entry.stamp.split())) if entry.stamp else (-1, -1),
    )
