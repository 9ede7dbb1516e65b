"""The arms of a comparison: one base recipe, and for each arm a few keys of it that differ.

An arm is named after an objective (vanilla, kd, noise_free, eco), which it then has, or freely, and says which keys it
changes. What decides the pictures, the samples and the initial weights is common to all.
"""

import itertools
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.recipe_files import suggest
from eco_fast.objective import OBJECTIVES

FREE = ("objective", "optimizer", "teacher", "train")
"""Sections that an arm may change."""
COMMON = ("train.device", "train.validate_every", "train.vanilla_twin")
"""Keys of them that it may not."""
FIRST_SEED = 2  # after the recipe's own seed: that of its own run, and one more: that of its teacher


@dataclass(frozen=True)
class Arm:
    """One arm.

    Attributes:
        name: unique; also the name of its folder.
        recipe: the whole recipe, with the base recipe's seed.
    """

    name: str
    recipe: Config


def make_arms(base: Config, wanted: Sequence[Sequence[str]], across: Sequence[str]) -> list[Arm]:
    """The arms of a comparison, each with each of the values of each `across`.

    Arms that read no centroids have no teacher, so that one vanilla arm serves arms of several teachers.

    Args:
        base: what they have in common.
        wanted: for each arm its name and its `key=value` changes; none for the four objectives.
        across: `key=[value, ...]`, in TOML; of a section, the values are tables of keys.

    Raises:
        ValueError: a bad arm; names it and what is wrong with it.
    """
    named = [(one[0], one[1:]) for one in wanted or [(name,) for name in OBJECTIVES]]
    axes = [_axis(one) for one in across]
    arms: dict[str, Arm] = {}
    for (name, changes), points in itertools.product(named, list(itertools.product(*axes))):
        objective = [f"objective.name={name}"] * (name in OBJECTIVES)
        recipe = _recipe(base, name, [*objective, *changes, *(one for point in points for one in point.overrides)])
        labels = [point.label for point in points if recipe.needs_centroids or not point.is_of_teacher]
        arm = Arm("_".join([name, *labels]), recipe)
        if "/" in arm.name:
            raise ValueError(f"arm {arm.name!r}: an arm is a folder, so its name has no slash; give it another name")
        if arms.setdefault(arm.name, arm).recipe != arm.recipe:
            raise ValueError(f"two arms are called {arm.name!r}; give each a name of its own: --arm NAME KEY=VALUE ...")
    for first, second in itertools.combinations(arms.values(), 2):
        if not config.differences(first.recipe, second.recipe):
            raise ValueError(f"arms {first.name!r} and {second.name!r} are the same run; leave one out")
    return list(arms.values())


def seeds_of(base: Config, count: int) -> list[int]:
    """The seeds of a comparison.

    Raises:
        ValueError: there are none.
    """
    if count < 1:
        raise ValueError(f"--seeds: expected at least 1 run of each arm, got {count}")
    return list(range(base.seed + FIRST_SEED, base.seed + FIRST_SEED + count))


def baseline_of(arm: Arm, arms: Sequence[Arm]) -> Arm | None:
    """The vanilla arm that differs from an arm in the fewest keys; None for a vanilla arm, or if there is none."""
    if arm.recipe.objective.name == "vanilla":
        return None
    vanilla = [other for other in arms if other.recipe.objective.name == "vanilla"]
    return min(vanilla, key=lambda other: len(config.differences(arm.recipe, other.recipe)), default=None)


def _recipe(base: Config, name: str, overrides: Sequence[str]) -> Config:
    if not overrides:
        raise ValueError(
            f"arm {name!r} is neither an objective nor says what it changes{suggest(name, OBJECTIVES)}; "
            f"an arm is one of {', '.join(OBJECTIVES)}, or NAME KEY=VALUE ..."
        )
    recipe = config.changed(base, overrides, f"arm {name!r}")
    if recipe.objective.name not in OBJECTIVES:
        raise ValueError(f"arm {name!r}: objective.name={recipe.objective.name} cannot be scored against the others")
    for key in config.differences(base, recipe):
        if key.split(".")[0] not in FREE or key in COMMON:
            raise ValueError(
                f"arm {name!r} changes {key}, which all arms of a comparison have in common; "
                "change it for all of them with --set, or make two comparisons"
            )
    return recipe if recipe.needs_centroids else recipe.model_copy(update={"teacher": base.teacher})


@dataclass(frozen=True)
class _Point:
    """One value of an axis: what it adds to the names of its arms (batch=4), and the overrides that set it."""

    label: str
    overrides: list[str]

    @property
    def is_of_teacher(self) -> bool:
        return all(one.startswith("teacher.") for one in self.overrides)


def _axis(text: str) -> list[_Point]:
    key, _, array = text.partition("=")
    try:
        values = tomllib.loads(f"values = {array}")["values"]
    except tomllib.TOMLDecodeError:
        values = None
    if not isinstance(values, list) or not values:
        raise ValueError(f"--across takes KEY=[VALUE, ...], for example train.batch='[2, 4, 8, 16]'; got {text!r}")
    return [_Point(_label(key, value), _overrides(key, value)) for value in values]


def _overrides(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [override for inner, one in value.items() for override in _overrides(f"{key}.{inner}", one)]
    return [f"{key}={json.dumps(value)}"]  # what JSON writes of a number, a text or a list is TOML


def _label(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return "_".join(_label(inner, one) for inner, one in value.items())
    return f"{key.rpartition('.')[2]}={Path(value).stem if isinstance(value, str) else value}"
