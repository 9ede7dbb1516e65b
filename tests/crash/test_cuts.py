"""After a power cut at any moment, whatever it leaves, the next command ends in the right bits; planted faults show.

`python -m bench.soak_crash` does the same with whole commands.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any
from unittest import mock

import pytest

from eco_fast.data import store_writer
from eco_fast.data.store_writer import Writer
from eco_fast.training.checkpoints import Checkpoints, state_path, weights_path
from eco_fast.training.run_folder import RunFolder
from eco_fast.utils import files
from tests.crash import small
from tests.crash.cuts import Cuts
from tests.crash.small import SMALL

RUN = "checkpoints, one kept"
MOST = 8  # states of each in which the next command is run
Write = Callable[[IO[bytes]], object]


@pytest.fixture(scope="module")
def cuts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Cuts:
    return Cuts(SMALL[request.param], tmp_path_factory.mktemp("cut"))


@pytest.mark.parametrize("cuts", SMALL, indirect=True)
def test_whatever_a_power_cut_leaves_nothing_is_lost(cuts: Cuts) -> None:
    assert list(cuts.explore(cuts.record(cuts.start, cuts.operation.act), MOST)) == []
    assert cuts.counts.ended == min(MOST, cuts.counts.kinds)


def everywhere(name: str, other: Callable[..., Any]) -> AbstractContextManager[object]:
    """Put something in the place of a function of `files`, in every module that has it."""
    real, stack = getattr(files, name), ExitStack()
    for module in [one for key, one in sys.modules.items() if key.startswith("eco_fast.")]:
        if getattr(module, name, None) is real:
            stack.enter_context(mock.patch.object(module, name, other))
    return stack


def beside(path: Path) -> Path:
    files.make_folder(path.parent)
    return path.with_name(f".{path.name}.partial")


def not_synced(path: Path, write: Write) -> None:
    with beside(path).open("wb") as file:
        write(file)
    beside(path).replace(path)
    files.sync_folder(path.parent)


def renamed_before_its_data(path: Path, write: Write) -> None:
    with beside(path).open("wb") as file:
        beside(path).replace(path)
        files.sync_folder(path.parent)
        write(file)
        file.flush()
        os.fsync(file.fileno())


def deleted_before_the_rename(path: Path, write: Write) -> None:
    with beside(path).open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    path.unlink(missing_ok=True)
    beside(path).rename(path)
    files.sync_folder(path.parent)


def in_its_place(path: Path, write: Write) -> None:
    files.make_folder(path.parent)
    with path.open("wb") as file:
        write(file)
        file.flush()
        os.fsync(file.fileno())
    files.sync_folder(path.parent)


def rows_not_synced(self: RunFolder, line: bytes) -> None:
    with self.metrics.open("ab", buffering=0) as file:
        file.write(line)
    files.sync_folder(self.folder)


def rows_without_a_name(self: RunFolder, line: bytes) -> None:
    with self.metrics.open("ab", buffering=0) as file:
        file.write(line)
        os.fsync(file.fileno())


def folder_without_a_name(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)


@contextmanager
def old_before_new() -> Iterator[None]:
    real = Checkpoints._write

    def write(self: Checkpoints, names: list[str], *what: Any) -> None:
        for name in names:
            weights_path(self.folder, name).unlink(missing_ok=True)
            state_path(self.folder, name).unlink(missing_ok=True)
        real(self, names, *what)

    with mock.patch.object(Checkpoints, "_write", write):
        yield


@contextmanager
def tidied_before_the_manifest() -> Iterator[None]:
    real = Writer.finish

    def finish(self: Writer) -> None:
        for table in self.folder.glob("*.table"):
            table.unlink()
        real(self)

    with mock.patch.object(Writer, "finish", finish):
        yield


@contextmanager
def filled_in_its_place(folder: Path) -> Iterator[Path]:
    if folder.exists():
        raise ValueError(f"{folder}: exists already")
    files.make_folder(folder)
    yield folder
    files.sync_folder(folder.parent)


def journal_not_synced(self: Writer) -> None:
    if not self._pending:
        return
    for entry in self._pending:
        store_writer._sync_file(self.folder / entry.file)
    with (self.folder / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write("".join(map(store_writer._journal_line, self._pending)))
    self._pending.clear()


def writing_by(write: Callable[..., None]) -> Callable[[], AbstractContextManager[object]]:
    return lambda: everywhere("write_atomically", write)


def of(owner: Any, name: str, other: Callable[..., Any]) -> Callable[[], AbstractContextManager[object]]:
    return lambda: mock.patch.object(owner, name, other)


def nothing(*_: object) -> None:
    pass


FAULTS: dict[str, tuple[str, Callable[[], AbstractContextManager[object]]]] = {
    "folders are not synced": (RUN, lambda: everywhere("sync_folder", nothing)),
    "files are not synced": (RUN, writing_by(not_synced)),
    "a file is renamed before its data": (RUN, writing_by(renamed_before_its_data)),
    "the old file is deleted before the rename": (RUN, writing_by(deleted_before_the_rename)),
    "a file is overwritten in its place": (RUN, writing_by(in_its_place)),
    "a new folder's name is not synced": (
        RUN,
        lambda: everywhere("make_folder", folder_without_a_name),
    ),
    "rows are not synced": (RUN, of(RunFolder, "_append", rows_not_synced)),
    "the rows' name is not synced": (RUN, of(RunFolder, "_append", rows_without_a_name)),
    "old checkpoints are removed before the new are there": (RUN, old_before_new),
    "packs are not synced": ("store", of(store_writer, "_sync_file", nothing)),
    "the journal is not synced": ("store", of(Writer, "sync", journal_not_synced)),
    "the table goes before the manifest": ("store, other images", tidied_before_the_manifest),
    "a release is filled in its place": ("release", of(small, "new_folder", filled_in_its_place)),
    "a release's files are not synced": ("release", writing_by(not_synced)),
}


@pytest.mark.parametrize(("cuts", "plant"), FAULTS.values(), ids=list(FAULTS), indirect=["cuts"])
def test_a_planted_fault_shows(cuts: Cuts, plant: Callable[[], AbstractContextManager[object]]) -> None:
    with plant():
        recorder = cuts.record(cuts.start, cuts.operation.act)
    assert next(cuts.explore(recorder), None) is not None
