"""Recipes from TOML files and `key=value` overrides.

An unknown key or a wrong type is an error that names the key and suggests the nearest one.
"""

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from typing import Any

import tomli_w
from pydantic import ValidationError

from eco_fast.config import recipe_files
from eco_fast.config.model_sections import MODELS, architecture_of
from eco_fast.config.recipe_files import suggest
from eco_fast.config.schema import Config

RENAMED = {
    "data.watch": "data.monitor",
    "data.small_images": "data.on_small_image",
    "train.batch": "train.batch_size",
    "train.vanilla_twin": "train.baseline",
    "optimizer.halve_every": "optimizer.step_size",
    "optimizer.halve_at": "optimizer.milestones",
}
RENAMED_VALUES = {("data.source", "packed"): "store", ("data.source", "encoded"): "files"}
TOML_WORDS = {  # where pydantic speaks of Python's types
    "tuple_type": 'input should be an array, such as ["a", "b"]',
    "model_type": "input should be a section with keys of its own",
}


def load(recipe: str, overrides: Sequence[str] = ()) -> Config:
    """Read a shipped recipe by name or a TOML file by path, and apply `section.key=value` overrides.

    Raises:
        ValueError: unknown recipe, key or type; the message names it.
    """
    values = recipe_files.read(recipe)
    for override in overrides:
        _apply(values, override)
    return validate(values, recipe)


def changed(recipe: Config, overrides: Sequence[str], source: str) -> Config:
    """A recipe with other values of some keys; `source` names it in what `validate` raises."""
    values = recipe.model_dump(mode="json")
    for override in overrides:
        _apply(values, override)
    return validate(values, source)


def validate(values: dict[str, Any], source: str) -> Config:
    """Check raw values against the types.

    Raises:
        ValueError: the first thing that is wrong, in one sentence.
    """
    try:
        return Config.model_validate(_tuples(values))
    except ValidationError as error:
        raise ValueError(f"{source}: {_sentence(error)}") from error


def dump(config: Config) -> str:
    """The resolved recipe as TOML; `load` of it gives the same run. The paper's row is the unchanged recipe's alone."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude={"paper"}))


def differences(first: Config, second: Config) -> list[str]:
    """Dotted keys in which the runs of two configs differ."""
    left, right = (dict(_leaves(one.model_dump(exclude={"paper"}))) for one in (first, second))
    return [key for key in {**left, **right} if left.get(key) != right.get(key)]


def _apply(values: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise ValueError(f"--set takes key=value, for example train.steps=300; got {override!r}")
    if any(0xD800 <= ord(character) <= 0xDFFF for character in text):  # how Python keeps bytes that it cannot read
        raise ValueError(
            f"--set {override}: not UTF-8, as recipes are; rename the folder or file, or name a link to it"
        )
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word: --set train.device=cpu needs no quotes
    section = values
    *parents, leaf = key.split(".")
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ValueError(f"--set {key}: {parent} is a value, not a section")  # noqa: TRY004 - the user's input
    section[leaf] = value


def _tuples(value: Any) -> Any:
    """TOML has arrays where the config has tuples; strict validation tells them apart."""
    if isinstance(value, dict):
        return {key: _tuples(item) for key, item in value.items()}
    return tuple(value) if isinstance(value, list) else value


def _leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _sentence(error: ValidationError) -> str:
    first = error.errors()[0]
    place, value = [str(part) for part in first["loc"]], first["input"]
    example = Config()
    if first["type"] == "architecture":
        place, value = ["model", "name"], architecture_of(value)
    elif place[0] == "model" and len(place) > 1:  # pydantic names the architecture as if it were a section
        example = Config(model=MODELS[place.pop(1)]())
    key = ".".join(place)
    if key in RENAMED:
        return f"{key} is called {RENAMED[key]} now"
    if new := RENAMED_VALUES.get((key, str(value))):
        return f"{key}={value} is called {key}={new} now"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{_suggest_key(key, example)}"
    expected = TOML_WORDS.get(first["type"], first["msg"][0].lower() + first["msg"][1:])
    return f"{key}: {expected}, got {value!r}"


def _suggest_key(key: str, example: Config) -> str:
    """The nearest name of the same section, the same name in another one, or else what the section has."""
    known = dict.fromkeys((*Config.model_fields, *(name for name, _ in _leaves(example.model_dump()))))
    section, dot, word = key.rpartition(".")
    siblings = [name.removeprefix(section + dot) for name in known if name.rpartition(".")[0] == section]
    if close := difflib.get_close_matches(word, siblings, n=1):
        return f" (did you mean {section}{dot}{close[0]}?)"
    namesakes = [name for name in known if name.rpartition(".")[2] == word]
    namesakes += [new for old, new in RENAMED.items() if old.rpartition(".")[2] == word]
    return suggest(key, namesakes, cutoff=0) or f"; the keys of {section or 'a recipe'} are {', '.join(siblings)}"
