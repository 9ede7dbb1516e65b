"""What is to be timed: recipes, each with every combination of the values that it is asked across."""

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.open_loader import choose_loader
from eco_fast.training.cost import network_without_memory
from eco_fast.training.precision import choose_precision
from eco_fast.training.step_graph import choose_recorder
from eco_fast.utils.device import pick_device

SUITE: Mapping[str, Mapping[str, Any]] = {
    "edsr_baseline_x2_eco": {},
    "quickstart": {"train.batch_size": 8, "train.compile": True},
    "swinir_small_x2_eco": {},
    "rcan_x2_eco": {},
}
"""What is timed where no recipe is named, with what differs from the recipe."""
SUITE_ON_CPU: Mapping[str, Mapping[str, Any]] = {
    "swinir_small_x2_eco": {"train.batch_size": 4},
    "rcan_x2_eco": {"train.batch_size": 1},
}
"""On a CPU, for which their own batches are too long to wait for."""
STEPS = 1_000_000
"""Of every recipe: how long it would train does not matter, and it is not to come to its end."""
NOT_NAMED = ("train.device", "train.steps")


@dataclass(frozen=True)
class BenchCase:
    """One recipe as it is to be timed.

    Attributes:
        name: the recipe's, with what differs from it; the same case has the same name on another day.
        recipe: on a named device, from fresh weights, without trackers.
        memory_format: of the network's weights and input, or "" for its own.
    """

    name: str
    recipe: Config
    memory_format: str

    @property
    def device(self) -> str:
        """Where it runs."""
        return self.recipe.train.device


def make_cases(
    recipes: Sequence[str], overrides: Mapping[str, Any], across: Sequence[str], memory_formats: Sequence[str]
) -> list[BenchCase]:
    """All combinations.

    Args:
        recipes: names or files; empty: `SUITE`.
        overrides: values of keys for all of them.
        across: `key=[value, ...]` in TOML.
        memory_formats: names of `MEMORY_FORMATS`; empty: each network's own.

    Raises:
        ValueError: a bad recipe, key or value, one that this machine cannot do, or a case that is asked for twice.
    """
    points = list(itertools.product(*(_axis(one) for one in across)))
    cases: dict[str, BenchCase] = {}
    for name, point, memory_format in itertools.product(recipes or SUITE, points, memory_formats or [""]):
        case = _case(name, {**overrides, **dict(point)}, memory_format, of_suite=not recipes)
        if case.name in cases:
            raise ValueError(f"{case.name} is asked for twice; name each recipe, key and value once")
        cases[case.name] = case
    for case in cases.values():
        _check(case)
    return list(cases.values())


def _axis(text: str) -> list[tuple[str, Any]]:
    key, values = config.assignment(text)
    if not isinstance(values, list) or not values:
        raise ValueError(f"--across takes KEY=[VALUE, ...], for example 'train.micro_batch=[4, 8]'; got {text!r}")
    return [(key, value) for value in values]


def _case(name: str, changes: Mapping[str, Any], memory_format: str, *, of_suite: bool) -> BenchCase:
    device = pick_device(config.load(name, changes).train.device)
    if of_suite:
        changes = {**SUITE[name], **(SUITE_ON_CPU.get(name, {}) if device == "cpu" else {}), **changes}
    fixed = {"train.device": device, "train.steps": STEPS, "train.trackers": [], "model.start_from": ""}
    recipe = config.load(name, {**changes, **fixed})
    named = [f"{key}={_shown(value)}" for key, value in changes.items() if key not in NOT_NAMED]
    named += [f"memory_format={memory_format}"] * bool(memory_format)
    return BenchCase(" ".join([name, *named]), recipe, memory_format)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _check(case: BenchCase) -> None:
    """Refuse what cannot be timed here, before anything is."""
    recipe, device = case.recipe, case.device
    choose_precision(recipe.train, device)
    choose_loader(recipe.data, device)
    choose_recorder(recipe.train, recipe.optimizer, device)
    network_without_memory(recipe.model, recipe.scale, recipe.data.patch)
