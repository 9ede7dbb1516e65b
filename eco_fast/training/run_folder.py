"""The run folder: what a training writes, and how it continues after any interruption.

config.toml         the resolved recipe
pinned.json         what it depends on besides; see `pinned.py`
micro_batch.json    what train.micro_batch = "auto" has chosen; see `micro_batch.py`
environment.json    versions, machine, commit, of each start, and what each changed
metrics.jsonl       loss, alpha, learning rate, validation scores; depends on the recipe alone, never on the clock
events.*            the same and the speed, for TensorBoard; see `trackers.py` for others
checkpoints/        see `checkpoints.py`
samples/ curves.png summary.json report.html
"""

import errno
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tomllib
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.resuming import ROUNDING, differing
from eco_fast.training.checkpoints import weights_path
from eco_fast.utils import distributed
from eco_fast.utils.device import device_name
from eco_fast.utils.files import name_damaged, name_file_in_errors, sync_folder, unused, write_json, write_text
from eco_fast.utils.lasting import patiently
from eco_fast.utils.locks import Lock, file_lock

PACKAGES = ("torch", "numpy", "pillow", "scikit-image", "safetensors", "pydantic")
OPTIONAL_PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
RECIPE, METRICS, CHECKPOINTS, PINNED, LOCK = "config.toml", "metrics.jsonl", "checkpoints", "pinned.json", ".lock"
MICRO_BATCH = "micro_batch.json"


class RunFolder:
    """One training's folder; while entered, this process's alone.

    Args:
        folder: its path.
        resolved: the recipe; where training has begun, the folder must hold this one, up to what may differ.
        resume: whether a training that has begun is to be continued.
    """

    def __init__(self, folder: Path, resolved: Config, *, resume: bool) -> None:
        self.folder, self.config, self.resume = folder, resolved, resume
        self._stack = ExitStack()
        self._lock: Lock | None = None

    def __enter__(self) -> Self:
        """Claim the folder; nothing is written before it is this process's.

        Raises:
            ValueError: the folder is taken, holds another recipe, or is not seen by all ranks; names its holder, the
                first key that differs, or where it is not seen.
        """
        distributed.on_rank0(self._claim)
        with ExitStack() as stack:
            stack.push(self)
            distributed.check_shared(self.folder)
            stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._lock = None
        self._stack.close()

    def _claim(self) -> None:
        """Check what is there, and note recipe and conditions."""
        folder, resolved = self.folder, self.config
        check_folder(folder, resolved, resume=self.resume)
        with ExitStack() as stack:
            self._lock = stack.enter_context(file_lock(folder / LOCK))
            changes = check_folder(folder, resolved, resume=self.resume)  # nobody else changes it from here on
            if not begun(folder):
                (folder / PINNED).unlink(missing_ok=True)
                (folder / MICRO_BATCH).unlink(missing_ok=True)
            write_text(folder / RECIPE, config.dump(resolved))
            conditions = folder / "environment.json"  # one entry per start: a resumed run may have moved
            now = environment(resolved)
            with name_damaged(conditions):
                starts = json.loads(conditions.read_text(encoding="utf-8")) if conditions.exists() else []
                changes += other_bits(starts[-1], now) if starts else []
            write_json(conditions, [*starts, {**now, "changed": changes}])
            for change in changes:
                print(f"{folder}: {change}", flush=True)
            self._stack = stack.pop_all()

    @property
    def metrics(self) -> Path:
        """The rows that belong to the recipe."""
        return self.folder / METRICS

    @property
    def checkpoints(self) -> Path:
        """Where `Checkpoints` writes."""
        return self.folder / CHECKPOINTS

    def checkpoint(self, name: str) -> Path:
        """Path of the weights called `name`: last or best."""
        return weights_path(self.checkpoints, name)

    def append(self, row: dict[str, Any]) -> None:
        """Add a row to metrics.jsonl; the first rank's task."""
        if self._lock is not None:
            self._lock.check()
        patiently(self.metrics, lambda: self._append(json.dumps(row).encode() + b"\n"))

    def _append(self, line: bytes) -> None:
        with name_file_in_errors(self.metrics), self.metrics.open("ab", buffering=0) as file:
            whole = file.tell()
            try:
                if file.write(line) < len(line):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # noqa: TRY301 - as the system says it next
                os.fsync(file.fileno())  # a checkpoint must never be ahead of the rows that led to it
                if not whole:
                    sync_folder(self.folder)
            except OSError:
                file.truncate(whole)
                raise

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, which a resumed run is about to write again; rank 0 does it.

        Where that leaves none, or `step` is not of the newest checkpoint, they may be all that is left: they are kept.
        """
        if not distributed.is_main_process() or not self.metrics.is_file():
            return
        rows = self.rows()
        kept = [row for row in rows if row["step"] <= step]
        beside = 2 * self.config.train.checkpoint_every  # a run is not further ahead of its newest checkpoint
        if len(kept) < len(rows) and (not kept or rows[-1]["step"] - step > beside):
            aside = unused(self.metrics.with_name(f"before-step-{step}.{METRICS}"))
            write_text(aside, self.metrics.read_text(encoding="utf-8"))
            print(f"{self.metrics}: goes on at step {step}; all its rows are kept in {aside.name}", flush=True)
        write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in kept))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_rows(self.folder)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that a kill or a power cut left in part is left out."""
    metrics = folder / METRICS
    if not metrics.exists():
        return []
    with name_damaged(metrics):
        whole, _, _ = metrics.read_text(encoding="utf-8").rpartition("\n")
        lines = whole.splitlines()
        if len(lines) > 1 and "\0" in lines[-1]:  # of two blocks of the disk, the second alone was written
            lines.pop()
        rows = [json.loads(line) for line in lines]
        return [{**row, "step": int(row["step"])} for row in rows]


def starts_of(folder: Path) -> list[dict[str, Any]]:
    """The conditions of each start of a run."""
    path = folder / "environment.json"
    with name_damaged(path):
        starts = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
        return [{**start, "packages": dict(start["packages"])} for start in starts]


def begun(folder: Path) -> bool:
    """Whether a training has left anything there, or in the folder of its teacher."""
    return any((one / name).exists() for one in (folder, folder / "teacher") for name in (METRICS, CHECKPOINTS))


def check_folder(folder: Path, resolved: Config, *, resume: bool, same_course: bool = False) -> list[str]:
    """Whether a run may begin or go on there; writes nothing.

    Args:
        folder: the run's.
        resolved: the recipe.
        resume: whether a training that has begun is to be continued.
        same_course: only with what changes no result.

    Returns:
        What differs from the recipe that is there, and may.

    Raises:
        ValueError: the folder is taken, or holds another recipe; names the first key that differs.
    """
    saved = folder / RECIPE
    # A run that stopped before its first step, for a bad image say, may begin again with another recipe.
    if (folder / METRICS).exists() or (folder / CHECKPOINTS).exists():
        if not resume:
            raise ValueError(
                f"{folder}: already holds a run; continue it with --resume, or choose another folder with --run"
            )
        if saved.is_file() and not saved.stat().st_size:  # a recipe of defaults, if it were one
            raise ValueError(f"{saved}: damaged, it is empty; restore it (the newest state of the run holds a copy)")
        refused, changes = differing(config.load(str(saved)), resolved, same_course=same_course)
        if refused:
            raise ValueError(
                f"{folder}: holds a run with another {refused[0]}; resume with the same recipe, "
                "or choose another folder with --run"
            )
        return changes
    # Hidden files are locks, or halves of what another process is writing this moment: the recipe first of all.
    files = folder.is_dir() and any(not one.name.startswith(".") for one in folder.iterdir())
    if files and not saved.exists():
        raise ValueError(f"{folder}: not empty and not a run; choose another folder with --run")
    return []


def check_checkpoint(written: str, resolved: Config, folder: Path) -> None:
    """Refuse to go on from the checkpoint of another run.

    Args:
        written: the recipe that its state holds, as TOML.
        resolved: the recipe that goes on.
        folder: where it is.

    Raises:
        ValueError: it is another recipe's; names the first key that differs.
    """
    refused, _ = differing(config.validate(tomllib.loads(written), str(folder)), resolved)
    if refused:
        raise ValueError(
            f"{folder}: its newest state is of a run with another {refused[0]} than {folder.parent / RECIPE} says; "
            "restore the one or the other"
        )


def other_bits(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What of the conditions of two starts changes the order of additions, and with it the last bits of the weights."""
    pairs = [(name, before.get(name), now[name]) for name in ("device", "threads", "processes")]
    pairs += [(name, before["packages"].get(name), now["packages"][name]) for name in ("torch", "numpy")]
    return [
        f"warning: {name} was {was!r} and is {value!r} now: {ROUNDING}, not bit for bit"
        for name, was, value in pairs
        if was != value and was is not None
    ]


def environment(resolved: Config) -> dict[str, Any]:
    """Versions, machine and commit: the conditions of every number in the run."""
    device = "cuda" if torch.cuda.is_available() and resolved.train.device != "cpu" else "cpu"
    return {
        "eco_fast": _version("eco-fast"),
        "commit": _commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "processes": distributed.world_size(),
        "packages": {name: _version(name) for name in (*PACKAGES, *OPTIONAL_PACKAGES)},
    }


def _version(package: str) -> str | None:
    """Version of an installed package, or None."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of an editable installation; None where there is none, or no git to ask."""
    here, answer = Path(__file__), ""
    # An environment inside somebody's project is in a repository too, whose commit says nothing of this package.
    for question in (["ls-files", "--error-unmatch", here.name], ["rev-parse", "HEAD"]):
        try:
            said = subprocess.run(["git", *question], cwd=here.parent, capture_output=True, text=True, check=False)
        except OSError:
            return None
        if said.returncode:
            return None
        answer = said.stdout.strip()
    return answer
