"""Recipes from TOML files, and other values for some of their keys.

An unknown key or a wrong type is an error that names the key and suggests the nearest one.
"""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tomli_w
from pydantic import ValidationError

from eco_fast.config import recipe_files
from eco_fast.config.keys import RENAMED, RENAMED_VALUES, all_keys, key_of, suggest_key
from eco_fast.config.model_sections import architecture_of
from eco_fast.config.schema import Config

Overrides = Mapping[str, Any] | Sequence[str]
"""Other values by dotted key, {"train.steps": 5}; or texts, "train.steps=5", the value in TOML or a bare word."""

LONGEST = 500  # characters
TOML_WORDS = {  # where pydantic speaks of Python's types
    "tuple_type": 'input should be an array, such as ["a", "b"]',
    "model_type": "input should be a section with keys of its own",
    "bool_type": "input should be true or false",
}


def load(recipe: str, overrides: Overrides = ()) -> Config:
    """Read a shipped recipe by name or a TOML file by path, with other values for some keys.

    Another model.name inherits no other key of [model], as in a recipe that extends one.

    Raises:
        ValueError: unknown recipe, key or type; the message names it.
    """
    return validate(recipe_files.merged(recipe_files.read(recipe), _sections(overrides)), recipe)


def changed(recipe: Config, overrides: Overrides, source: str) -> Config:
    """A recipe with other values for some keys; `source` names it in what `validate` raises."""
    return validate(recipe_files.merged(recipe.model_dump(mode="json"), _sections(overrides)), source)


def check(key: str, value: Any) -> None:
    """Check the value of one key by itself.

    Raises:
        ValueError: it is none; one sentence that begins with the key.
    """
    values = _sections({key: value})
    if key.startswith("model.") and key != "model.name" and (known := key_of(key)):
        values["model"]["name"] = next(iter(known.fields))
    try:
        Config.model_validate(_tuples(values))
    except ValidationError as error:
        raise ValueError(f"{key}: {_expected(error)}") from error


def validate(values: dict[str, Any], source: str) -> Config:
    """Check raw values against the types.

    Raises:
        ValueError: the first thing that is wrong, in one sentence.
    """
    try:
        return Config.model_validate(_tuples(values))
    except ValidationError as error:
        raise ValueError(f"{source}: {_shown(_sentence(error))}") from error
    except RecursionError as error:
        raise ValueError(f"{source}: sections within sections without end; a recipe has one level of them") from error


def assignment(text: str) -> tuple[str, Any]:
    """Key and value of "train.steps=300"; a value that is no TOML is a bare word, as in "train.device=cpu".

    Raises:
        ValueError: there is no key.
    """
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise ValueError(f"expected KEY=VALUE, for example train.steps=300; got {text!r}")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value


def dump(config: Config) -> str:
    """The resolved recipe as TOML; `load` of it gives the same run. The paper's row is the unchanged recipe's alone."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude={"paper"}))


def differences(first: Config, second: Config) -> list[str]:
    """Dotted keys in which the runs of two configs differ."""
    left, right = map(flat, (first, second))
    return [key for key in {**left, **right} if left.get(key) != right.get(key)]


def flat(recipe: Config) -> dict[str, Any]:
    """The values of a recipe by dotted key, without those of [paper]."""
    return dict(_leaves(recipe.model_dump(exclude={"paper"})))


def _sections(overrides: Overrides) -> dict[str, Any]:
    """The overrides as a recipe's file has them. Surrogates are how Python keeps bytes of a name that are no text."""
    given = overrides if isinstance(overrides, Mapping) else dict(map(assignment, overrides))
    values: dict[str, Any] = {}
    for key, value in given.items():
        section = values
        *parents, leaf = key.split(".")
        for parent in parents:
            section = section.setdefault(parent, {})
            if not isinstance(section, dict):
                raise ValueError(f"{key}: {parent} is a value, not a section")  # noqa: TRY004 - the user's input
        for text in value if isinstance(value, list | tuple) else [value]:
            if isinstance(text, str) and any(0xD800 <= ord(character) <= 0xDFFF for character in text):
                raise ValueError(
                    f"{key}: {text} is not UTF-8, as recipes are; rename the folder or file, or name a link to it"
                )
        section[leaf] = dict(value) if isinstance(value, dict) else value
    return values


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
    place = [str(part) for part in first["loc"]]
    known = all_keys()
    if place[0] == "model" and len(place) > 1:  # pydantic names the architecture as if it were a section
        architecture = place.pop(1)
        known = {name: key for name, key in known.items() if architecture in key.fields or key.section != "model"}
    key = ".".join(place)
    if key in RENAMED:
        return f"{key} is called {RENAMED[key]} now"
    if new := RENAMED_VALUES.get(key, {}).get(str(first["input"])):
        return f"{key}={first['input']} is called {key}={new} now"
    if first["type"] == "extra_forbidden":
        return f"unknown key {key}{suggest_key(key, [*Config.model_fields, *known])}"
    return f"{'model.name' if first['type'] == 'architecture' else key}: {_expected(error)}"


def _expected(error: ValidationError) -> str:
    first = error.errors()[0]
    value = architecture_of(first["input"]) if first["type"] == "architecture" else first["input"]
    expected = TOML_WORDS.get(first["type"], first["msg"][0].lower() + first["msg"][1:])
    return f"{expected}, got {value!r}"


def _shown(sentence: str) -> str:
    """A sentence with somebody's keys and values in it: not without end."""
    return sentence if len(sentence) <= LONGEST else f"{sentence[:LONGEST]}..."
