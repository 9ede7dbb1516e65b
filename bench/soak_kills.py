"""Commands killed at random moments, and again when they go on, end in the bits of one that was left alone.

    OMP_NUM_THREADS=1 python -m bench.soak_kills FOLDER [KILLS]

The commands are those of `tests/crash/operations.py`, and a run with a teacher and a baseline of its own. Each is
forked from this process, which has imported everything, and gets SIGKILL after a random time, anywhere from its first
file to its table; so does the command that goes on, until one ends before its time. FOLDER/kills.json keeps the counts:
a soak that was stopped goes on there, with other moments. What ended otherwise is kept beside it.
"""

import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import chdir, suppress
from pathlib import Path

import torch

from eco_fast.utils.files import write_json
from tests.crash.operations import OPERATIONS, TRAIN, Operation, command, in_turn, result
from tests.crash.recorder import read_tree

FORK = multiprocessing.get_context("fork")
OWN = (*TRAIN, "--teacher.checkpoint", "self", "--teacher.steps", "6", "--train.baseline", "true")
LATE = 1.2  # times the command's own time, up to which the moments lie: some commands end before
SLOWER = 1.05  # what a kill adds to that time: on a machine that has become slow, a command must end some day


def import_what(act: Callable[[], object]) -> None:
    """Import what something imports on its way, by doing it in another process: those that are forked then have it."""
    here, there = FORK.Pipe(duplex=False)

    def learn() -> None:
        act()
        there.send(list(sys.modules))

    process = FORK.Process(target=learn)
    process.start()
    for name in here.recv():
        with suppress(ImportError):  # made by others as they are imported
            importlib.import_module(name)
    process.join()


class Soak:
    """One operation, killed again and again.

    Args:
        operation: what is done.
        folder: where; new.
        moments: random ones.
    """

    def __init__(self, operation: Operation, folder: Path, moments: random.Random) -> None:
        self.operation, self.folder, self.moments = operation, folder, moments
        self.begun, whole, self.seconds = folder / "begun", folder / "whole", 0.0
        self.begun.mkdir(parents=True)
        assert self._attempt(self.begun, operation.make, 0) is not None
        shutil.copytree(self.begun, whole)
        self.seconds = self._attempt(whole, operation.act, 0) or 0.0
        self.expected = result(read_tree(whole))

    def once(self) -> tuple[int, int]:
        """Kill the command and those that go on until one ends; how many kills, and how many while a file was written.

        Raises:
            SystemExit: a command failed, or the end is another one.
        """
        work, kills, writing = self.folder / "work", 0, 0
        shutil.copytree(self.begun, work)
        act, halves = self.operation.act, set[tuple[Path, int]]()
        while (took := self._attempt(work, act, self.moments.uniform(0, LATE * self.seconds))) is None:
            kills, act = kills + 1, self.operation.go_on
            left = {(path, path.stat().st_mtime_ns) for path in work.rglob(".*.partial")}
            writing, halves = writing + bool(left - halves), left
            self.seconds *= SLOWER
        if not kills:
            self.seconds = took
        if result(read_tree(work)) != self.expected:
            raise SystemExit(f"WRONG: another end after {kills} kills, kept in {work}")
        shutil.rmtree(work)
        return kills, writing

    def _attempt(self, where: Path, act: Callable[[], object], limit: float) -> float | None:
        """Seconds that something took, in a process of its own; None: it was killed after `limit`, if that is not 0."""
        process = FORK.Process(target=self._do, args=(where, act))
        began = time.monotonic()
        process.start()
        process.join(limit or None)
        process.kill()
        process.join()
        if process.exitcode not in (0, -signal.SIGKILL):
            raise SystemExit(f"WRONG: it failed, as said above, in {where}")
        return time.monotonic() - began if process.exitcode == 0 else None

    def _do(self, where: Path, act: Callable[[], object]) -> None:
        os.chdir(where)
        try:
            act()
        except ValueError as error:
            if not str(error).startswith(self.operation.may_say):
                raise


def main(folder: Path, kills: int) -> None:
    """Kill commands until there have been so many kills, in all soaks of this folder."""
    torch.set_num_threads(1)
    kept, counts = folder / "kills.json", dict[str, dict[str, int]]()
    with suppress(FileNotFoundError):
        counts = json.loads(kept.read_text(encoding="utf-8"))
    own = Operation(OPERATIONS["run"].make, command(*OWN), command(*OWN, "--resume"))
    operations = {**OPERATIONS, "run, with teacher and baseline": own}
    moments = random.Random(sum(one["ends"] for one in counts.values()))  # noqa: S311 - moments, no secret
    here = folder / f"process-{os.getpid()}"
    (here / "first").mkdir(parents=True)
    with chdir(here / "first"):
        import_what(in_turn(own.make, own.act))
    soaks = {name: Soak(one, here / name.replace(", ", "-"), moments) for name, one in operations.items()}
    while sum(one["kills"] for one in counts.values()) < kills:
        for name, soak in soaks.items():
            killed, writing = soak.once()
            count = counts.setdefault(name, {"kills": 0, "writing": 0, "ends": 0})
            for key, more in (("kills", killed), ("writing", writing), ("ends", 1)):
                count[key] += more
            write_json(kept, counts)
    shutil.rmtree(here)
    total = {key: sum(one[key] for one in counts.values()) for key in ("kills", "writing", "ends")}
    for name, count in [*counts.items(), ("all", total)]:
        during = f"{count['writing']} of them while a file was being written"
        print(f"{name}: {count['kills']} kills, {during}; {count['ends']} ends in the same bits")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 1000)
