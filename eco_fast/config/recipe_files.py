"""Recipes as files: the shipped ones by name, anybody's by path, and one that extends another.

`extends = "edsr_x2_eco"` in a recipe names a shipped one, or a .toml file as seen from this one; the rest of the recipe
says what differs, key by key.
"""

import codecs
import difflib
import tomllib
from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Any

OWN = ("description", "paper")  # what a recipe says of itself; true of no recipe that extends it


def recipe_names() -> list[str]:
    """Names of the recipes that are shipped with the package."""
    files = resources.files("eco_fast.config").joinpath("recipes").iterdir()
    return sorted(entry.name.removesuffix(".toml") for entry in files if entry.name.endswith(".toml"))


def read(recipe: str) -> dict[str, Any]:
    """The raw values of a shipped recipe or a TOML file, with those of the recipes that it extends.

    Raises:
        ValueError: a recipe that does not exist, is not TOML, or extends itself; names it.
    """
    values = _parse(recipe)
    children = [recipe]
    while "extends" in values:
        parent = _parent(children[-1], values.pop("extends"))
        if _identity(parent) in map(_identity, children):
            raise ValueError(f"{recipe}: extends itself: {' -> '.join([*children, parent])}")
        try:
            inherited = _parse(parent)
        except ValueError as error:
            raise ValueError(f"{children[-1]}: extends {parent}: {error}") from error
        children.append(parent)
        values = merged({key: value for key, value in inherited.items() if key not in OWN}, values)
    return values


def suggest(word: str, known: Sequence[str], cutoff: float = 0.5) -> str:
    """What a misspelt word may have meant, as the end of a sentence."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f" (did you mean {close[0]}?)" if close else ""


def _parse(recipe: str) -> dict[str, Any]:
    """The raw values of one file."""
    if recipe.endswith(".toml"):
        path = Path(recipe)
        if not path.is_file():
            raise ValueError(f"{recipe}: there is no such file")
        content = path.read_bytes()
    elif recipe in recipe_names():
        content = resources.files("eco_fast.config").joinpath("recipes", f"{recipe}.toml").read_bytes()
    else:
        raise ValueError(
            f"there is no recipe {recipe!r}{suggest(recipe, recipe_names())}; "
            "`eco-fast recipes` lists the shipped ones, and a file of your own ends with .toml"
        )
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise ValueError(f"{recipe}: is in UTF-16; save it as UTF-8")
    try:
        return tomllib.loads(content.decode("utf-8-sig"))  # with the byte-order mark that Windows' editors write
    except (ValueError, RecursionError) as error:  # of either step
        raise ValueError(f"{recipe}: not valid TOML: {error}") from error


def _parent(recipe: str, name: Any) -> str:
    if not isinstance(name, str):
        raise ValueError(f"{recipe}: extends: expected the name of a recipe or a .toml file, got {name!r}")  # noqa: TRY004 - the user's input
    return str(Path(recipe).parent / name) if name.endswith(".toml") else name


def _identity(recipe: str) -> str:
    return str(Path(recipe).resolve()) if recipe.endswith(".toml") else recipe


def merged(inherited: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """One recipe's values over another's, key by key; of another architecture's [model] nothing is left."""
    values = {**inherited, **own}
    for name in inherited.keys() & own.keys():
        before, after = inherited[name], own[name]
        if isinstance(before, dict) and isinstance(after, dict) and not (name == "model" and _differ(before, after)):
            values[name] = merged(before, after)
    return values


def _differ(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Whether a [model] turns to another architecture, which has other keys and inherits none."""
    return "name" in after and after["name"] != before.get("name", "edsr")
