"""Power cuts: every state that one may leave of an operation, and what becomes of each."""

import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any

from tests.crash.disk import Disk
from tests.crash.operations import GROWING, LITTER, LOCK, Operation, after_the_cut, before_the_cut, result
from tests.crash.recorder import Entries, File, Promise, Recorder, Tree, read_tree, write_tree

Key = frozenset[tuple[str, File | None]]


@dataclass
class Counts:
    """What was looked at."""

    states: int = 0
    """Of the disk, at all moments."""
    distinct: int = 0
    """Those that differ in a bit, or in a time that counts."""
    kinds: int = 0
    """Those that differ in more than locks and litter's content."""
    ended: int = 0
    """Those of them in which the next command was run to its end."""
    refused: int = 0
    """Those of them in which it said what is there already."""


class Cuts:
    """One operation, cut off anywhere.

    Args:
        operation: what is done.
        folder: where; new.
        seed: of the random states.

    Attributes:
        start: what the operation begins with.
        kinds: states that differ in more than litter, of the last command that was explored.
    """

    def __init__(self, operation: Operation, folder: Path, seed: int = 0) -> None:
        self.operation, self.folder = operation, folder
        self.counts = Counts()
        self.kinds: list[Tree] = []
        self._draw = random.Random(seed)  # noqa: S311 - no secret
        self._seen: set[Key] = set()
        self._kinds: set[Key] = set()
        self._asked: set[tuple[Key, int]] = set()
        self._scratch = folder / "scratch"
        whole = folder / "whole"
        whole.mkdir(parents=True)
        with chdir(whole), after_the_cut():
            operation.make()
            self.start = read_tree(Path())
            operation.act()
            self._expected = result(read_tree(Path()))

    def record(self, start: Tree, act: Callable[[], object]) -> Recorder:
        """What is done where something is there already."""
        with self._in(start):
            recorder = Recorder()
            with before_the_cut(recorder):
                act()
                recorder.promise("the end", self._is_done)
            there = read_tree(Path())
            disk = Disk(recorder)
            for event in recorder.events:
                disk.step(event)
            assert disk.now() == there, "something was written that was not seen"
        assert result(there) == self._expected
        return recorder

    def explore(self, recorder: Recorder, most: int | None = None) -> Iterator[str]:
        """Cut off everywhere what was recorded; yields what goes wrong.

        Args:
            recorder: of what is cut off.
            most: states in which the next command is run, drawn at random; None: all that differ in more than litter.
        """
        self.kinds, self._seen, self._kinds, self._asked = [], set(), set(), set()
        disk, promises = Disk(recorder), 0
        placed = _Placed(disk.now())
        for place, event in enumerate(recorder.events):
            disk.step(event)
            promises += isinstance(event, Promise)
            if isinstance(event, Entries):
                placed.add(disk.now())
            for tree in disk.states(self._draw):
                self.counts.states += not isinstance(event, Promise)
                for wrong in self._look(tree, placed, disk, promises):
                    yield f"after {place + 1} of {len(recorder.events)} events: {wrong}"
        drawn = self.kinds if most is None else self._draw.sample(self.kinds, min(most, len(self.kinds)))
        for tree in drawn:
            yield from self._go_on(tree)

    def _look(self, tree: Tree, placed: "_Placed", disk: Disk, promises: int) -> Iterator[str]:
        """Without a command: whether what is there is whole, and what was promised."""
        whole, kind = frozenset(tree.items()), _kind(tree)
        if whole not in self._seen:
            self._seen.add(whole)
            self.counts.distinct += 1
        yield from (f"{path} is not whole" for path in placed.torn(tree))
        if kind not in self._kinds:
            self._kinds.add(kind)
            self.counts.kinds += 1
            self.kinds.append(tree)
        if (kind, promises) not in self._asked:
            self._asked.add((kind, promises))
            with self._in(tree):
                yield from (name for name, kept in disk.promises.items() if not _holds(kept))

    def _go_on(self, tree: Tree) -> Iterator[str]:
        """The next command."""
        self.counts.ended += 1
        with self._in(tree):
            try:
                self.operation.go_on()
            except ValueError as refusal:
                if not str(refusal).startswith(self.operation.may_say):
                    yield f"the next command says {refusal}; there was {', '.join(sorted(tree))}"
                    return
                self.counts.refused += 1
            made = result(read_tree(Path()))
        yield from _differences(self._expected, made)

    def _is_done(self) -> bool:
        return result(read_tree(Path())) == self._expected

    @contextmanager
    def _in(self, tree: Tree) -> Iterator[None]:
        """In a folder that holds it, after the cut."""
        write_tree(tree, self._scratch)
        try:
            with chdir(self._scratch), after_the_cut(), redirect_stdout(StringIO()):
                yield
        finally:
            shutil.rmtree(self._scratch)


class _Placed:
    """What files have held whenever a name was given to them: whatever they hold else is not whole."""

    def __init__(self, start: Tree) -> None:
        self._contents: dict[str, set[bytes]] = {}
        self.add(start)

    def add(self, tree: Tree) -> None:
        for path, file in tree.items():
            if file is not None:
                self._contents.setdefault(path, set()).add(file.content)

    def torn(self, tree: Tree) -> Iterator[str]:
        for path, file in tree.items():
            if file is None or GROWING.search(path) or LITTER.search(path):
                continue
            if file.content not in self._contents.get(path, ()):
                yield path


def _holds(kept: Callable[[], bool]) -> bool:
    try:
        return kept()
    except ValueError:
        return False


def _kind(tree: Tree) -> Key:
    """A state without locks and the content of litter, and with those times alone that a program reads."""
    return frozenset((path, _telling(path, file)) for path, file in tree.items() if not LOCK.search(path))


def _telling(path: str, file: File | None) -> File | None:
    if file is None:
        return None
    if LITTER.search(path):
        return File(b"", 0)
    return file if path.endswith(".pack") else File(file.content, 0)


def _differences(expected: dict[str, Any], made: dict[str, Any]) -> Iterator[str]:
    for path in sorted(expected.keys() | made.keys()):
        if path not in made:
            yield f"{path} is missing"
        elif path not in expected:
            yield f"{path} is too much"
        elif made[path] != expected[path]:
            yield f"{path} is another"
