"""The scores of finished runs, grouped by recipe, and the shipped recipe that each is nearest to.

A run is a folder of `eco-fast train` or, under runs/, of `eco-fast compare`.
"""

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.paper import IDLE, PLACES, network_of
from eco_fast.data.images import prefix_errors
from eco_fast.evaluation.benchmarks import set_name
from eco_fast.training.run_folder import RECIPE

METHOD = ("objective", "teacher")
"""Sections in which runs that are compared with one another may differ."""


@dataclass(frozen=True)
class Result:
    """One trained network.

    Attributes:
        folder: the run's.
        run: the run's recipe.
        network: student, or baseline.
        sets: mean scores by set and network, bicubic among them; None: the run is not finished.
    """

    folder: Path
    run: Config
    network: str
    sets: Mapping[str, Mapping[str, Mapping[str, float | None]]] | None

    @property
    def recipe(self) -> Config:
        """How the network was trained."""
        return self.run.vanilla if self.network == "baseline" else self.run

    def score(self, name: str, measure: str) -> float:
        """The mean of psnr_y (dB; infinite for identical images) or ssim_y over a set of a finished run."""
        assert self.sets is not None, "only finished runs have scores"
        value = self.sets[name][self.network][measure]
        return math.inf if value is None else value

    @property
    def names(self) -> list[str]:
        """Its test sets, or else all sets that it was scored on."""
        data = self.run.data
        wanted = [set_name(source) for source in data.test or data.validation]
        return wanted if data.test or self.sets is None else list(self.sets)


def read_results(folders: Sequence[Path]) -> list[Result]:
    """The networks of runs, finished or not.

    Raises:
        ValueError: a folder is no run, or was not scored; names it. Or two runs cannot stand in one table; names both.
    """
    results = [result for folder in folders for result in _read(folder)]
    for first, second in itertools.combinations(results, 2):
        _check(first, second)
    return results


def by_recipe(results: Sequence[Result]) -> list[list[Result]]:
    """The results in groups that differ in their seeds alone."""
    groups: list[list[Result]] = []
    for result in results:
        for group in groups:
            if group[0].network == result.network and IDLE.issuperset(config.differences(group[0].run, result.run)):
                group.append(result)
                break
        else:
            groups.append([result])
    return groups


def read_recipe(folder: Path) -> Config:
    """The recipe of a run.

    Raises:
        ValueError: not a run folder.
    """
    saved = folder / RECIPE
    if not saved.is_file():
        raise ValueError(f"{folder}: expected a run folder, but it holds no {RECIPE}; name one, such as runs/mine")
    return config.load(str(saved))


def _read(folder: Path) -> list[Result]:
    recipe = read_recipe(folder)
    if recipe.objective.name == "residual":
        raise ValueError(f"{folder}: its objective is residual, whose network makes no SR images; leave it out")
    sets = _sets(folder, recipe)
    networks = ("student", "baseline") if recipe.train.baseline else ("student",)
    return [Result(folder, recipe, network, sets) for network in networks]


def _sets(folder: Path, recipe: Config) -> dict[str, Any] | None:
    summary, compared = folder / "summary.json", folder / "scores.json"
    path = summary if summary.is_file() else compared
    if not path.is_file():
        return None
    with prefix_errors(path):
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if path == compared:  # of the last checkpoint, as a run's summary
        return {name: {"student": scores} for name, scores in content["last"].items()}
    if not (recipe.data.test or recipe.data.validation):
        raise ValueError(
            f"{folder}: its recipe names no images to score (data.test), so it has no scores; "
            f"`eco-fast train --run {folder} --resume --data.test Set5/HR` scores it"
        )
    if "sets" not in content:
        raise ValueError(
            f"{path}: has no scores by set; `eco-fast train --run {folder} --resume` scores the finished run again"
        )
    sets: dict[str, Any] = content["sets"]
    return sets


def _check(first: Result, second: Result) -> None:
    """Whether two results can stand in one table."""
    if first.run.scale != second.run.scale or network_of(first.run) != network_of(second.run):
        return
    differences = config.differences(first.run, second.run)
    for key in differences:
        if key not in IDLE | PLACES and key.split(".")[0] not in METHOD:
            raise ValueError(
                f"{first.folder} and {second.folder}: runs of one table must share their recipe, but {key} differs; "
                "make a table of each"
            )
    if all(key in IDLE and key != "seed" for key in differences) and first.network == second.network:
        raise ValueError(
            f"{first.folder} and {second.folder}: the same recipe and seed {first.run.seed} would count twice; "
            "name one of them"
        )
    for name in (first.sets or {}).keys() & (second.sets or {}).keys():
        theirs = [Result(one.folder, one.run, "bicubic", one.sets) for one in (first, second)]
        bicubic = [one.score(name, "psnr_y") for one in theirs if one.sets and "bicubic" in one.sets[name]]
        if len(bicubic) == 2 and not math.isclose(*bicubic, rel_tol=1e-6):
            raise ValueError(
                f"{first.folder} and {second.folder}: their {name} holds different images: bicubic scores "
                f"{bicubic[0]:.3f} dB on the one and {bicubic[1]:.3f} dB on the other; make a table of each"
            )
