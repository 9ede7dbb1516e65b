"""A recipe as one call: what `eco-fast train` does, for Python."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.config import Config
from eco_fast.evaluation.metrics import Scores
from eco_fast.training.checkpoints import weights_path
from eco_fast.training.figures import SUMMARY_ROWS
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.run_folder import CHECKPOINTS
from eco_fast.utils import distributed


@dataclass(frozen=True)
class TrainingResult:
    """What a run has made."""

    folder: Path
    """The run's: metrics.jsonl, curves.png, samples/, summary.json and more."""
    checkpoint: Path
    """The trained weights, for `load_network`."""
    scores: Mapping[str, Scores]
    """The means over the test images, of "bicubic" and of those of "teacher", "baseline" and "student" that there are;
    empty where the recipe names no images to score."""
    seconds: Mapping[str, float]
    """Spent in each stage, interrupted starts included."""


def train(
    recipe: str | Path | Config,
    folder: str | Path,
    changes: Mapping[str, Any] | None = None,
    *,
    resume: bool = False,
    profile: bool = False,
) -> TrainingResult:
    """Run a recipe from images to scores, or continue it; every stage that is finished is reused.

    Under torchrun all ranks call it; a restart by torchrun goes on where the run was. In the main thread, Ctrl-C and
    SIGTERM stop it with a checkpoint: it raises KeyboardInterrupt.

    Args:
        recipe: the name of a shipped recipe, a .toml file, or a recipe itself.
        folder: the run's, new or empty unless `resume`.
        changes: other values of some keys, for example {"train.steps": 300, "data.train": ["DIV2K_train_HR"]}.
        resume: continue the run in the folder; the recipe must be its own, as folder/config.toml is.
        profile: write a trace of a few steps into the run folder.

    Raises:
        ValueError: an unknown key, bad images, a taken folder and the like: one sentence that names what is wrong.
    """
    values = {key: _plain(value) for key, value in (changes or {}).items()}
    if isinstance(recipe, Config):
        resolved = config.changed(recipe, values, "recipe")
    else:
        resolved = config.load(fspath(recipe), values)
    folder = Path(folder)
    with distributed.process_group(resolved.train.timeout):
        summary = run_recipe(resolved, folder, resume=resume or distributed.restarted(), profile=profile)
    scores = {name: _scores(summary[name]) for name in SUMMARY_ROWS if name in summary}
    return TrainingResult(folder, weights_path(folder / CHECKPOINTS, "last"), scores, summary["seconds"])


def _scores(means: Mapping[str, float | None]) -> Scores:
    """As `json_safe` wrote them."""
    return Scores(**{name: math.inf if value is None else value for name, value in means.items()})


def _plain(value: Any) -> Any:
    """A path, or several, as recipes have them."""
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return fspath(value) if isinstance(value, PathLike) else value
