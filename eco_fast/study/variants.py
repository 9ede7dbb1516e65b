"""The variants of a comparison: one base recipe, and for each variant a few keys of it that differ.

A variant has the name of an objective (vanilla, kd, noise_free, eco), which it then trains, or a name of its own, and
lists the keys it changes. All share what determines the images, the samples and the initial weights.
"""

import itertools
import json
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.config import Config, Overrides
from eco_fast.config.keys import all_keys, key_of, suggest_key
from eco_fast.config.recipe_files import suggest
from eco_fast.data.objective import OBJECTIVES

FREE = ("objective", "optimizer", "teacher", "train")
"""Sections a variant may change."""
TUNED = ("objective", "optimizer", "train")
"""Sections whose keys tuning may pick: a teacher is not the student's to choose."""
COMMON = ("train.device", "train.validate_every", "train.baseline")
"""Keys in them that it may not."""
FIRST_SEED = 2  # added to the recipe's seed; its own run has 0 added, its teacher 1
FIRST_TUNING_SEED = 1000  # as FIRST_SEED, of the runs that pick values


@dataclass(frozen=True)
class Variant:
    """One variant.

    Attributes:
        name: unique; also the name of its folder.
        recipe: the whole recipe, with the base recipe's seed.
        tuned: the values in it that tuning tries, by key.
    """

    name: str
    recipe: Config
    tuned: Mapping[str, Any] = field(default_factory=dict)


def make_variants(base: Config, wanted: Sequence[Sequence[str]], across: Sequence[str]) -> list[Variant]:
    """The variants of a comparison, crossed with the values of every `across`.

    A variant that reads no centroids has no teacher: one vanilla variant is the baseline for several teachers.

    Args:
        base: what they have in common.
        wanted: for each variant its name and `key=value` changes; empty: the four objectives.
        across: `key=[value, ...]`, in TOML; of a section, the values are tables of keys.

    Raises:
        ValueError: a bad variant; names it and what is wrong with it.
    """
    named = [(one[0], one[1:]) for one in wanted or [(name,) for name in OBJECTIVES]]
    axes = [_axis(one) for one in across]
    variants: dict[str, Variant] = {}
    for (name, changes), points in itertools.product(named, list(itertools.product(*axes))):
        objective = [f"objective.name={name}"] * (name in OBJECTIVES)
        recipe = _recipe(base, name, [*objective, *changes, *(one for point in points for one in point.overrides)])
        labels = [point.label for point in points if recipe.needs_centroids or not point.is_of_teacher]
        variant = Variant("_".join([name, *labels]), recipe)
        if "/" in variant.name:
            raise ValueError(f"variant {variant.name!r}: the name becomes a folder and must not contain a slash")
        if variants.setdefault(variant.name, variant).recipe != variant.recipe:
            raise ValueError(f"two variants are called {variant.name!r}; name each: --variant NAME KEY=VALUE ...")
    for first, second in itertools.combinations(variants.values(), 2):
        if not config.differences(first.recipe, second.recipe):
            raise ValueError(f"variants {first.name!r} and {second.name!r} are the same run; leave one out")
    return list(variants.values())


def seeds_of(base: Config, count: int) -> list[int]:
    """The seeds of a comparison.

    Raises:
        ValueError: there are none, or they reach those of `tuning_seeds_of`.
    """
    most = FIRST_TUNING_SEED - FIRST_SEED
    if not 1 <= count <= most:
        raise ValueError(f"--seeds: expected 1 to {most} runs of each variant, got {count}")
    return list(range(base.seed + FIRST_SEED, base.seed + FIRST_SEED + count))


def tuning_seeds_of(base: Config, count: int) -> list[int]:
    """The seeds that values are picked by, apart from those of `seeds_of`, whose number may grow.

    Raises:
        ValueError: there are none.
    """
    if count < 1:
        raise ValueError(f"--tuning-seeds: expected at least 1 run of each value, got {count}")
    return list(range(base.seed + FIRST_TUNING_SEED, base.seed + FIRST_TUNING_SEED + count))


def baseline_of(variant: Variant, variants: Sequence[Variant]) -> Variant | None:
    """The vanilla variant that differs in the fewest keys; None if there is none, or `variant` is vanilla itself.

    Tuned keys do not count: each variant has the values that are best for it.
    """
    if variant.recipe.objective.name == "vanilla":
        return None
    vanilla = [other for other in variants if other.recipe.objective.name == "vanilla"]
    return min(
        vanilla,
        key=lambda other: len(set(config.differences(variant.recipe, other.recipe)) - set(variant.tuned)),
        default=None,
    )


def tuned_variants(base: Config, variant: Variant, tune: Sequence[str]) -> list[Variant]:
    """A variant with each of the values that tuning tries, and all their combinations; itself if there are none.

    Args:
        base: what the variants have in common.
        variant: one of `make_variants`.
        tune: `key=[value, ...]` in TOML, each key once.

    Raises:
        ValueError: a bad key or value, or fewer than two; or the variant has a value of its own.
    """
    axes = dict(map(_tuning_axis, tune))
    if len(axes) < len(tune):
        raise ValueError(f"--tune: expected each key once, got {' and '.join(tune)}; name all values of a key together")
    for key in axes:
        if key in config.differences(base, variant.recipe):
            raise ValueError(f"variant {variant.name!r} changes {key}, which --tune picks; leave one of the two out")
    variants = []
    for values in itertools.product(*axes.values()):
        given = dict(zip(axes, values, strict=True))
        recipe = _recipe(variant.recipe, variant.name, given) if given else variant.recipe
        tuned = {key: config.flat(recipe)[key] for key in given}
        variants.append(Variant("_".join([variant.name, *itertools.starmap(_label, tuned.items())]), recipe, tuned))
    return variants


def _tuning_axis(text: str) -> tuple[str, list[Any]]:
    """Key and values of one --tune."""
    key, values = _array(text, "--tune", "optimizer.learning_rate='[1e-4, 3e-4, 1e-3]'")
    if key_of(key) is None:
        raise ValueError(f"--tune: unknown key {key}{suggest_key(key, list(all_keys()))}")
    if key.split(".")[0] not in TUNED or key in COMMON:
        raise ValueError(
            f"--tune {key}: expected a key of {', '.join(TUNED)} in which variants may differ; "
            "compare values of others with --across, or in two comparisons"
        )
    for value in values:
        try:
            config.check(key, value)
        except ValueError as error:
            raise ValueError(f"--tune {error}") from error
    if len(values) < 2 or any(first == second for first, second in itertools.combinations(values, 2)):
        raise ValueError(f"--tune {key}: expected two or more different values, got {values}")
    return key, values


def _recipe(base: Config, name: str, overrides: Overrides) -> Config:
    if not overrides:
        raise ValueError(
            f"variant {name!r} is no objective and changes no key{suggest(name, OBJECTIVES)}; "
            f"a variant is one of {', '.join(OBJECTIVES)}, or NAME KEY=VALUE ..."
        )
    recipe = config.changed(base, overrides, f"variant {name!r}")
    if recipe.objective.name not in OBJECTIVES:
        raise ValueError(f"variant {name!r}: objective.name={recipe.objective.name} cannot be scored with the others")
    for key in config.differences(base, recipe):
        if key.split(".")[0] not in FREE or key in COMMON:
            raise ValueError(
                f"variant {name!r} changes {key}, which all variants share; "
                f"change it for all of them with --{key}, or make two comparisons"
            )
    return recipe if recipe.needs_centroids else recipe.model_copy(update={"teacher": base.teacher})


@dataclass(frozen=True)
class _Point:
    """One value of an axis: what it adds to the names of its variants (batch=4), and the overrides that set it."""

    label: str
    overrides: list[str]

    @property
    def is_of_teacher(self) -> bool:
        return all(one.startswith("teacher.") for one in self.overrides)


def _axis(text: str) -> list[_Point]:
    key, values = _array(text, "--across", "train.batch_size='[2, 4, 8, 16]'")
    return [_Point(_label(key, value), _overrides(key, value)) for value in values]


def _array(text: str, option: str, example: str) -> tuple[str, list[Any]]:
    key, _, array = text.partition("=")
    try:
        values = tomllib.loads(f"values = {array}")["values"]
    except tomllib.TOMLDecodeError:
        values = None
    if not isinstance(values, list) or not values:
        raise ValueError(f"{option} takes KEY=[VALUE, ...], for example {example}; got {text!r}")
    return key, values


def _overrides(key: str, value: Any) -> list[str]:
    if isinstance(value, dict):
        return [override for inner, one in value.items() for override in _overrides(f"{key}.{inner}", one)]
    return [f"{key}={json.dumps(value)}"]  # what JSON writes of a number, a text or a list is TOML


def _label(key: str, value: Any) -> str:
    if isinstance(value, dict):
        return "_".join(_label(inner, one) for inner, one in value.items())
    return f"{key.rpartition('.')[2]}={Path(value).stem if isinstance(value, str) else value}"
