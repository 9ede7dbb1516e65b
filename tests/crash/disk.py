"""What a power cut may leave of what `Recorder` has seen: the states of the disk, at each moment.

The rules are POSIX's, which promise less than any file system keeps:

- A file's bytes are on the disk once the file is synced. Until then any of its 4 KiB blocks may be as before, or new;
  so may its size and time. What lies between its old end and a block that is not there is zeros.
- A folder's names are on the disk once the folder is synced; a file's own sync does nothing for its name. Until then
  any of the changes may be there, in any combination; a rename is there or not.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence

from tests.crash.recorder import Data, Entries, Event, File, Node, Promise, Recorder, Sync, Tree

BLOCK = 4096
EXHAUSTIVE = 4
"""Changes of names, or blocks of a file, up to which all combinations or each single block are built."""
DRAWS = 3
"""Random combinations beyond that."""
NEVER = File(b"", 0)

Choice = Callable[[Node], File]


class Disk:
    """A disk below a program.

    Attributes:
        promises: those made so far, by name.
    """

    def __init__(self, recorder: Recorder) -> None:
        self.top = recorder.top
        self.promises: dict[str, Callable[[], bool]] = {}
        self._files = {node: one for node, one in recorder.start.items() if isinstance(one, File)}
        self._names = {node: dict(one) for node, one in recorder.start.items() if isinstance(one, dict)}
        self._data: dict[Node, list[Data]] = {}
        self._changes: list[Entries] = []

    def step(self, event: Event) -> None:
        """Let the program do something."""
        match event:
            case Entries():
                self._changes.append(event)
            case Data():
                self._data.setdefault(event.node, []).append(event)
            case Promise():
                self.promises[event.name] = event.kept
            case Sync():
                self._sync(event.node)

    def _sync(self, node: Node) -> None:
        if not node.folder:
            self._files[node] = self._newest(node)
            self._data.pop(node, None)
            return
        left = []
        for change in self._changes:
            _apply(self._names, [one for one in change.changes if one[0] is node])
            left.append(Entries(tuple(one for one in change.changes if one[0] is not node)))
        self._changes = [change for change in left if change.changes]

    def now(self) -> Tree:
        """What a program sees, and what is left where it alone is killed."""
        return self._tree(self._changes, self._newest)

    def states(self, draw: random.Random) -> Iterator[Tree]:
        """What a power cut may leave at this moment; each state once."""
        seen: set[frozenset[tuple[str, File | None]]] = set()
        torn = [self._torn(draw, which) for which in self._tears()]
        for changes in self._combinations(draw):
            for choose in (self._newest, self._before, self._sized, *torn):
                tree = self._tree(changes, choose)
                key = frozenset(tree.items())
                if key not in seen:
                    seen.add(key)
                    yield tree

    def _combinations(self, draw: random.Random) -> Iterator[Sequence[Entries]]:
        count = len(self._changes)
        if count <= EXHAUSTIVE:
            for chosen in itertools.product((True, False), repeat=count):
                yield list(itertools.compress(self._changes, chosen))
            return
        for place in range(count + 1):
            yield self._changes[:place]
            yield self._changes[place : place + 1]
            yield self._changes[:place] + self._changes[place + 1 :]
        for _ in range(DRAWS):
            yield [change for change in self._changes if draw.random() < 0.5]

    def _tears(self) -> Iterator[tuple[str, int]]:
        """Which blocks of the files that are not synced are new."""
        most = max((-(-len(self._newest(node).content) // BLOCK) for node in self._data), default=0)
        for block in range(min(most, EXHAUSTIVE)):
            yield "all but", block
            yield "only", block
        for number in range(DRAWS if most > 1 else 0):
            yield "random", number

    def _torn(self, draw: random.Random, which: tuple[str, int]) -> Choice:
        kind, place = which
        made: dict[Node, File] = {}

        def choose(node: Node) -> File:
            if node in self._data and node not in made:
                old, new = self._before(node), self._newest(node)
                size = max(len(old.content), len(new.content))
                there = [
                    {"all but": block != place, "only": block == place, "random": draw.random() < 0.5}[kind]
                    for block in range(-(-size // BLOCK))
                ]
                made[node] = _blend(old, new, there)
            return made.get(node) or self._newest(node)

        return choose

    def _before(self, node: Node) -> File:
        return self._files.get(node, NEVER)

    def _newest(self, node: Node) -> File:
        file = self._before(node)
        for data in self._data.get(node, ()):
            file = _written(file, data)
        return file

    def _sized(self, node: Node) -> File:
        """Its size and time, and none of its bytes."""
        return _blend(self._before(node), self._newest(node), ())

    def _tree(self, changes: Sequence[Entries], choose: Choice) -> Tree:
        names = {folder: dict(one) for folder, one in self._names.items()}
        for change in changes:
            _apply(names, change.changes)
        return dict(_walk(self.top, "", names, choose))


def _apply(names: dict[Node, dict[str, Node]], changes: Sequence[tuple[Node, str, Node | None]]) -> None:
    for folder, name, node in changes:
        below = names.setdefault(folder, {})
        if node is None:
            below.pop(name, None)
        else:
            below[name] = node


def _walk(
    folder: Node, path: str, names: dict[Node, dict[str, Node]], choose: Choice
) -> Iterator[tuple[str, File | None]]:
    for name, node in names.get(folder, {}).items():
        yield f"{path}{name}", None if node.folder else choose(node)
        if node.folder:
            yield from _walk(node, f"{path}{name}/", names, choose)


def _written(file: File, data: Data) -> File:
    old = file.content[: data.offset].ljust(data.offset, b"\0")
    content = old if data.content is None else old + data.content + file.content[data.offset + len(data.content) :]
    return File(content, data.changed)


def _blend(old: File, new: File, there: Sequence[bool]) -> File:
    """A file of the new size, whose blocks are new where they are there."""
    content = bytearray(old.content[: len(new.content)].ljust(len(new.content), b"\0"))
    for block, is_new in enumerate(there):
        if is_new:
            part = slice(block * BLOCK, (block + 1) * BLOCK)
            content[part] = new.content[part]
    return File(bytes(content), new.changed)
