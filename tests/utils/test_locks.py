"""Locks between real processes, and file systems that lack what a lock is usually made of."""

import errno
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from eco_fast.utils import locks
from eco_fast.utils.locks import Holder, TakenError, file_lock
from tests.helpers import HANGS

HOLD = """
import errno, fcntl, sys
from pathlib import Path
from eco_fast.utils.locks import file_lock
if sys.argv[2] == "without":
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")
    fcntl.flock = flock
print("ready", flush=True)
input()
try:
    with file_lock(Path(sys.argv[1])):
        print("mine", flush=True)
        input()
except ValueError as error:
    print(error, flush=True)
"""


@pytest.fixture(params=["with", "without"])
def flock(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether the file system knows flock; Lustre may say ENOSYS."""
    if request.param == "without":

        def refuse(_: int, __: int) -> None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

        monkeypatch.setattr(fcntl, "flock", refuse)
    return str(request.param)


@pytest.fixture
def start() -> Iterator[Callable[[Path, str], "subprocess.Popen[str]"]]:
    """Starts a process that takes the lock at a line on its stdin, and leaves it at the next."""
    with ExitStack() as stack:

        def started(path: Path, flock: str) -> "subprocess.Popen[str]":
            process = subprocess.Popen(
                [sys.executable, "-c", HOLD, str(path), flock], stdin=-1, stdout=-1, text=True, bufsize=1
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            assert line(process) == "ready"
            return process

        yield started


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def go(*processes: "subprocess.Popen[str]") -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()


def test_of_processes_that_start_at_once_one_has_it_and_the_other_names_it(
    flock: str, start: Callable[[Path, str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    path = tmp_path / ".lock"
    both = [start(path, flock), start(path, flock)]
    go(*both)
    said = {line(process): process for process in both}
    owner = said.pop("mine")
    (refused,) = said
    assert refused.startswith(f"{tmp_path}: in use by process {owner.pid} on {os.uname().nodename}, since 20")
    with pytest.raises(TakenError, match=f"in use by process {owner.pid} "), file_lock(path):
        pass
    owner.kill()
    owner.wait()
    with file_lock(path), pytest.raises(TakenError, match=f"process {os.getpid()} "), file_lock(path):
        pass
    with file_lock(path):
        pass  # also after a clean end


def test_a_dead_one_is_succeeded_by_one_alone(
    start: Callable[[Path, str], "subprocess.Popen[str]"], tmp_path: Path
) -> None:
    """Without flock, and again and again: each new dead process leaves its file."""
    path = tmp_path / ".lock"
    for round_ in range(3):
        both = [start(path, "without"), start(path, "without")]
        go(*both)
        lines = [line(process) for process in both]
        assert sorted(one == "mine" for one in lines) == [False, True], round_
        owner = both[lines.index("mine")]
        owner.kill()
        owner.wait()
    assert len(list(tmp_path.glob(".lock.held*"))) == 3


def planted(path: Path, **changes: str | int) -> None:
    path.write_text(json.dumps(asdict(replace(Holder.me(), **changes))), encoding="utf-8")  # type: ignore[arg-type]


def test_a_process_number_that_another_process_has_now_is_no_holder(flock: str, tmp_path: Path) -> None:
    path = tmp_path / (".lock" if flock == "with" else ".lock.held")
    planted(path, started="1")
    with file_lock(tmp_path / ".lock"):
        pass


def test_a_process_on_another_machine_lives_as_long_as_it_renews_its_file(
    flock: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / (".lock" if flock == "with" else ".lock.held")
    planted(path, host="node7", kernel="another")
    os.utime(path, (1e9, 1e9))
    with file_lock(tmp_path / ".lock"):
        pass  # no sign of life for years
    planted(path, host="node7", kernel="another")
    os.utime(path)
    monkeypatch.setattr(locks, "SILENCE", HANGS)  # on a slow machine, too, the next sign comes in time
    looks = iter(range(100))

    def another_beat(_: float) -> None:
        if next(looks) == 2:
            os.utime(path, (2e9, 2e9))

    monkeypatch.setattr("time.sleep", another_beat)
    with pytest.raises(TakenError, match=r"in use by process \d+ on node7"), file_lock(tmp_path / ".lock"):
        pass


def test_one_that_was_taken_for_dead_notices(tmp_path: Path) -> None:
    with file_lock(tmp_path / ".lock") as lock:
        assert lock is not None
        lock.check()
        planted(lock.path, host="node7", kernel="another")
        with pytest.raises(TakenError, match=r"taken over by process \d+ on node7"):
            lock.check()
    assert lock.path.read_text(), "the other's lock is left alone"


def test_a_forked_child_does_not_keep_its_parents_lock(tmp_path: Path) -> None:
    """As a kill of the parent alone leaves it."""
    code = (
        "import os, sys, time\nfrom pathlib import Path\nfrom eco_fast.utils.locks import file_lock\n"
        "lock = file_lock(Path(sys.argv[1])); lock.__enter__()\n"
        "if child := os.fork():\n    print(child, flush=True)\n    os.kill(os.getpid(), 9)\n"
        f"os.close(1); time.sleep({HANGS})"
    )
    answer = subprocess.run([sys.executable, "-c", code, str(tmp_path / ".lock")], stdout=-1, text=True, check=False)
    try:
        with file_lock(tmp_path / ".lock"):
            pass
    finally:
        os.kill(int(answer.stdout), 9)


def test_what_cannot_be_written_is_not_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(path: Path, *_: int) -> int:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))

    monkeypatch.setattr(locks, "_open", read_only)
    with pytest.raises(OSError, match="Read-only"), file_lock(tmp_path / ".lock"):
        pass  # one may write there, so this is another fault
    monkeypatch.setattr(os, "access", lambda *_: False)
    with file_lock(tmp_path / ".lock") as lock:
        assert lock is None
