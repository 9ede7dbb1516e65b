"""The keys of a recipe, one by one."""

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import get_origin

from pydantic.fields import FieldInfo

from eco_fast.config.model_sections import MODELS, Section
from eco_fast.config.schema import Config

RENAMED = {
    "data.watch": "data.monitor",
    "data.small_images": "data.on_small_image",
    "train.batch": "train.batch_size",
    "train.vanilla_twin": "train.baseline",
    "optimizer.halve_every": "optimizer.step_size",
    "optimizer.halve_at": "optimizer.milestones",
}
RENAMED_VALUES = {"data.source": {"packed": "store", "encoded": "files"}}


@dataclass(frozen=True)
class Key:
    """One key.

    Attributes:
        name: as in "train.steps".
        fields: its type, default and docstring; for a key of [model] those of each architecture that has it, by the
            architecture's name, for any other key one, under "".
    """

    name: str
    fields: Mapping[str, FieldInfo]

    @property
    def open(self) -> bool:
        """Whether it is a table of anybody's keys, as `model.arguments`."""
        return get_origin(next(iter(self.fields.values())).annotation) is dict

    @property
    def section(self) -> str:
        """Its section; empty at the top."""
        return self.name.rpartition(".")[0]


def key_of(name: str) -> Key | None:
    """The key of this name, or the open one that it is in."""
    keys = all_keys()
    above = keys.get(name.rpartition(".")[0])
    return keys.get(name) or (above if above and above.open else None)


@cache
def all_keys() -> Mapping[str, Key]:
    """Every key by name, in the order of the sections."""
    found: dict[str, dict[str, FieldInfo]] = {}
    for name, field in Config.model_fields.items():
        if name == "model":
            for architecture, section in MODELS.items():
                for leaf, inner in section.model_fields.items():
                    found.setdefault(f"model.{leaf}", {})[architecture] = inner
        elif isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found.update({f"{name}.{leaf}": {"": inner} for leaf, inner in field.annotation.model_fields.items()})
        else:
            found[name] = {"": field}
    return {name: Key(name, fields) for name, fields in found.items()}


def nearest_key(key: str, known: Sequence[str]) -> str | None:
    """What an unknown key may have meant: the nearest name of its section, or else its name in another section.

    Args:
        key: the unknown key.
        known: keys and sections to choose from.
    """
    section, dot, word = key.rpartition(".")
    close = difflib.get_close_matches(word, _within(section, known), n=1)
    if close:
        return f"{section}{dot}{close[0]}"
    namesakes = [name for name in known if name.rpartition(".")[2] == word]
    namesakes += [new for old, new in RENAMED.items() if old.rpartition(".")[2] == word]
    return next(iter(difflib.get_close_matches(key, namesakes, n=1, cutoff=0)), None)


def suggest_key(key: str, known: Sequence[str]) -> str:
    """The nearest key, or else what the section has, as the end of a sentence; the arguments of `nearest_key`."""
    near, section = nearest_key(key, known), key.rpartition(".")[0]
    if near:
        return f" (did you mean {near}?)"
    return f"; the keys of {section or 'a recipe'} are {', '.join(_within(section, known))}"


def _within(section: str, known: Sequence[str]) -> list[str]:
    return [name.rpartition(".")[2] for name in known if name.rpartition(".")[0] == section]
