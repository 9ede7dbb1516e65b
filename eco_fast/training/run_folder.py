"""The run folder: what a training writes, and how it continues after any interruption.

config.toml         the resolved recipe
environment.json    versions, machine, commit, of each start
metrics.jsonl       loss, alpha, learning rate, validation scores; depends on the recipe alone, never on the clock
events.*            the same and the speed, for TensorBoard
checkpoints/        see `checkpoints.py`
samples/ curves.png summary.json
"""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from eco_fast import __version__, config
from eco_fast.config import Config
from eco_fast.training.checkpoints import weights_path
from eco_fast.utils import distributed
from eco_fast.utils.device import device_name
from eco_fast.utils.files import name_file_in_errors, write_json, write_text

PACKAGES = ("torch", "numpy", "pillow", "scikit-image", "safetensors", "pydantic")
OPTIONAL_PACKAGES = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
RECIPE, METRICS, CHECKPOINTS = "config.toml", "metrics.jsonl", "checkpoints"


class RunFolder:
    """One training's folder.

    Args:
        folder: its path.
        resolved: the recipe; where training has begun, the folder must hold this one.
        resume: whether a training that has begun is to be continued.

    Raises:
        ValueError: the folder is taken, or holds another recipe; names the first key that differs.
    """

    def __init__(self, folder: Path, resolved: Config, *, resume: bool) -> None:
        self.folder, self.config = folder, resolved
        distributed.on_rank0(lambda: self._claim(resume=resume))

    def _claim(self, *, resume: bool) -> None:
        """Check what is there, and note recipe and conditions."""
        folder, resolved = self.folder, self.config
        check_folder(folder, resolved, resume=resume)
        write_text(folder / RECIPE, config.dump(resolved))
        conditions = folder / "environment.json"  # one entry per start: a resumed run may have moved
        starts = json.loads(conditions.read_text(encoding="utf-8")) if conditions.is_file() else []
        write_json(conditions, [*starts, environment(resolved)])

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
        with name_file_in_errors(self.metrics), self.metrics.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())  # a checkpoint must never be ahead of the rows that led to it

    def rewind(self, step: int) -> None:
        """Drop the rows after `step`, which a resumed run is about to write again; rank 0 does it."""
        if distributed.is_main_process() and self.metrics.is_file():
            rows = [line for line in self.rows() if line["step"] <= step]
            write_text(self.metrics, "".join(json.dumps(row) + "\n" for row in rows))

    def rows(self) -> list[dict[str, Any]]:
        """The rows of metrics.jsonl."""
        return read_rows(self.folder)


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that a kill cut short is left out."""
    metrics = folder / METRICS
    if not metrics.is_file():
        return []
    whole, _, _ = metrics.read_text(encoding="utf-8").rpartition("\n")
    return [json.loads(line) for line in whole.splitlines()]


def check_folder(folder: Path, resolved: Config, *, resume: bool) -> None:
    """Whether a run may begin or go on there; writes nothing. Arguments and errors are those of `RunFolder`."""
    saved = folder / RECIPE
    # A run that stopped before its first step, for a bad image say, may begin again with another recipe.
    if (folder / METRICS).exists() or (folder / CHECKPOINTS).exists():
        if not resume:
            raise ValueError(
                f"{folder}: already holds a run; continue it with --resume, or choose another folder with --run"
            )
        if changed := config.differences(config.load(str(saved)), resolved):
            raise ValueError(
                f"{folder}: holds a run with another {changed[0]}; resume with the same recipe, "
                "or choose another folder with --run"
            )
    elif folder.is_dir() and any(folder.iterdir()) and not saved.exists():
        raise ValueError(f"{folder}: not empty and not a run; choose another folder with --run")


def environment(resolved: Config) -> dict[str, Any]:
    """Versions, machine and commit: the conditions of every number in the run."""
    device = "cuda" if torch.cuda.is_available() and resolved.train.device != "cpu" else "cpu"
    return {
        "eco_fast": __version__,
        "commit": _commit(),
        "command": sys.argv,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "device": device_name(device),
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
    try:
        answer = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False
        )
    except OSError:
        return None
    return answer.stdout.strip() or None
