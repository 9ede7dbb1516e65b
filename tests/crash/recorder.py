"""Everything that a block does to the files below a folder, in the order in which it is done.

`Recorder` patches `os` and `open` while it is entered. What C code writes by itself escapes it: whoever records
compares what `Disk.now` gives in the end with what is there. Strace sees the same calls (`test_recorder.py`).
"""

import _pyio  # type: ignore[import-not-found]
import builtins
import fcntl
import io
import os
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from unittest import mock

PATCHED = (
    *("open", "close", "write", "pwrite", "truncate", "ftruncate", "fsync", "fdatasync", "utime"),
    *("rename", "replace", "unlink", "remove", "mkdir", "rmdir", "link"),
)


class File(NamedTuple):
    """What a file holds."""

    content: bytes
    changed: int
    """Modification time, in nanoseconds."""


Tree = dict[str, File | None]
"""Files by path below a folder; None is a folder."""


class Node:
    """A file or folder, whatever its name."""

    __slots__ = ("folder",)

    def __init__(self, *, folder: bool) -> None:
        self.folder = folder


class Entries(NamedTuple):
    """Names that appear or vanish in one step: (folder, name, what it names now)."""

    changes: tuple[tuple[Node, str, Node | None], ...]


class Data(NamedTuple):
    """Bytes that a file has from an offset on; None: it ends there."""

    node: Node
    offset: int
    content: bytes | None
    changed: int


class Sync(NamedTuple):
    """A file's content, or a folder's names, are on the disk."""

    node: Node


class Promise(NamedTuple):
    """What no power cut may undo from here on; replaces the one of the same name."""

    name: str
    kept: Callable[[], bool]
    """Asked in the folder of a state; may raise ValueError instead."""


Event = Entries | Data | Sync | Promise


def read_tree(folder: Path) -> Tree:
    """What a folder holds."""
    tree: Tree = {}
    for path in sorted(folder.rglob("*")):
        status = path.stat()
        tree[str(path.relative_to(folder))] = None if path.is_dir() else File(path.read_bytes(), status.st_mtime_ns)
    return tree


def write_tree(tree: Tree, folder: Path) -> None:
    """Let a new folder hold it."""
    folder.mkdir(parents=True)
    for name, file in sorted(tree.items()):
        path = folder / name
        if file is None:
            path.mkdir()
        else:
            path.write_bytes(file.content)
            os.utime(path, ns=(file.changed, file.changed))


class Recorder:
    """Records what happens below the current folder while it is entered.

    Attributes:
        top: the folder.
        start: what was there: the names of each folder, the content of each file.
        events: what was done.
    """

    def __init__(self) -> None:
        self.root = Path.cwd()
        self.top = Node(folder=True)
        self.start: dict[Node, dict[str, Node] | File] = {}
        self.events: list[Event] = []
        self._names: dict[Node, dict[str, Node]] = {}
        self._open: dict[int, Node] = {}
        self._lock = threading.RLock()
        self._stack = ExitStack()
        self._real: Any = {name: getattr(os, name) for name in PATCHED}

    def __enter__(self) -> Self:
        self._begin(read_tree(self.root))
        for name in PATCHED:
            self._stack.enter_context(mock.patch.object(os, name, self._locked(getattr(self, f"_call_{name}"))))
        for module in (io, builtins):
            self._stack.enter_context(mock.patch.object(module, "open", self._opened(io.open)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.close()

    def promise(self, name: str, kept: Callable[[], bool]) -> None:
        """Note that something must survive a power cut from now on."""
        with self._lock:
            self.events.append(Promise(name, kept))

    def _begin(self, tree: Tree) -> None:
        self.start[self.top] = {}
        nodes = {"": self.top}
        for path, file in tree.items():
            above, _, name = path.rpartition("/")
            nodes[path] = node = Node(folder=file is None)
            self.start[node] = {} if file is None else file
            names = self.start[nodes[above]]
            assert isinstance(names, dict)
            names[name] = node
        self._names = {node: dict(names) for node, names in self.start.items() if isinstance(names, dict)}

    def _locked(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def locked(*arguments: Any, **options: Any) -> Any:
            with self._lock:
                return call(*arguments, **options)

        return locked

    def _opened(self, real: Callable[..., Any]) -> Callable[..., Any]:
        """`open` in plain Python, which writes by `os.write`, for what is written below the folder."""

        def opened(file: Any, mode: str = "r", *arguments: Any, **options: Any) -> Any:
            ours = file in self._open if isinstance(file, int) else self._place(file) is not None
            chosen = _pyio.open if ours and set(mode) & set("wax+") else real
            return chosen(file, mode, *arguments, **options)

        return opened

    def _place(self, path: Any, folder: int | None = None) -> tuple[Node, str] | None:
        """The folder and the name that a path means; None outside of what is recorded."""
        if isinstance(path, int):
            return None
        node, parts = self.top, Path(os.fsdecode(path)).parts
        if folder is not None:
            if folder not in self._open:
                return None
            node = self._open[folder]
        else:
            whole = Path(os.path.abspath(os.fsdecode(path)))  # noqa: PTH100 - without following links
            if not whole.is_relative_to(self.root):
                return None
            parts = whole.relative_to(self.root).parts
        for part in parts[:-1]:
            below = self._names[node].get(part)
            if below is None or not below.folder:
                return node, "there is no such folder"  # and the real call fails
            node = below
        return node, parts[-1] if parts else ""

    def _at(self, place: tuple[Node, str]) -> Node | None:
        folder, name = place
        return self._names[folder].get(name) if name else folder

    def _change(self, *changes: tuple[Node, str, Node | None]) -> None:
        self.events.append(Entries(changes))
        for folder, name, node in changes:
            if node is None:
                self._names[folder].pop(name, None)
            else:
                self._names[folder][name] = node
                if node.folder:
                    self._names.setdefault(node, {})

    def _data(self, node: Node, offset: int, content: bytes | None, status: os.stat_result) -> None:
        self.events.append(Data(node, offset, content, status.st_mtime_ns))

    def _call_open(self, path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
        place = self._place(path, dir_fd)
        number: int = self._real["open"](path, flags, mode, dir_fd=dir_fd)
        self._open.pop(number, None)
        if place is None:
            return number
        node = self._at(place)
        if node is None:
            node = Node(folder=False)
            self._change((*place, node))
            self._data(node, 0, None, os.fstat(number))
        elif flags & os.O_TRUNC:
            self._data(node, 0, None, os.fstat(number))
        self._open[number] = node
        return number

    def _call_close(self, number: int) -> None:
        self._open.pop(number, None)
        self._real["close"](number)

    def _call_write(self, number: int, content: Any) -> int:
        if number not in self._open:
            return int(self._real["write"](number, content))
        appends = fcntl.fcntl(number, fcntl.F_GETFL) & os.O_APPEND
        offset = os.fstat(number).st_size if appends else os.lseek(number, 0, os.SEEK_CUR)
        return self._written(number, content, offset, self._real["write"](number, content))

    def _call_pwrite(self, number: int, content: Any, offset: int) -> int:
        return self._written(number, content, offset, self._real["pwrite"](number, content, offset))

    def _written(self, number: int, content: Any, offset: int, count: int) -> int:
        if number in self._open:
            self._data(self._open[number], offset, bytes(memoryview(content).cast("B")[:count]), os.fstat(number))
        return count

    def _call_ftruncate(self, number: int, size: int) -> None:
        self._real["ftruncate"](number, size)
        if number in self._open:
            self._data(self._open[number], size, None, os.fstat(number))

    def _call_truncate(self, path: Any, size: int) -> None:
        self._real["truncate"](path, size)
        self._touched(path, size)

    def _call_utime(self, path: Any, *arguments: Any, **options: Any) -> None:
        self._real["utime"](path, *arguments, **options)
        self._touched(path, Path(path).stat().st_size)

    def _touched(self, path: Any, size: int) -> None:
        place = self._place(path)
        node = self._at(place) if place else None
        if node is not None and not node.folder:
            self._data(node, size, None, Path(path).stat())

    def _call_fsync(self, number: int) -> None:
        if number in self._open:  # on the disk it need not be: the machine goes on
            self.events.append(Sync(self._open[number]))
        else:
            self._real["fsync"](number)

    _call_fdatasync = _call_fsync

    def _call_rename(self, source: Any, target: Any) -> None:
        before, after = self._place(source), self._place(target)
        node = self._at(before) if before else None
        self._real["rename"](source, target)
        if before and after and node is not None:
            self._change((*before, None), (*after, node))

    _call_replace = _call_rename

    def _call_link(self, source: Any, target: Any) -> None:
        before, after = self._place(source), self._place(target)
        self._real["link"](source, target)
        if before and after:
            self._change((*after, self._at(before)))

    def _call_unlink(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._real["unlink"](path, dir_fd=dir_fd)
        self._gone(path, dir_fd)

    _call_remove = _call_unlink

    def _call_rmdir(self, path: Any, *, dir_fd: int | None = None) -> None:
        self._real["rmdir"](path, dir_fd=dir_fd)
        self._gone(path, dir_fd)

    def _gone(self, path: Any, dir_fd: int | None) -> None:
        if place := self._place(path, dir_fd):
            self._change((*place, None))

    def _call_mkdir(self, path: Any, mode: int = 0o777, *, dir_fd: int | None = None) -> None:
        self._real["mkdir"](path, mode, dir_fd=dir_fd)
        if place := self._place(path, dir_fd):
            self._change((*place, Node(folder=True)))
