"""What the paper says of a recipe: the shipped recipe that it is nearest to, and the scores in that one's row."""

import functools
from collections.abc import Iterable
from typing import Any, NamedTuple

from eco_fast.config.loading import differences, load
from eco_fast.config.recipe_files import recipe_names
from eco_fast.config.schema import Config, Score

SETS = {"Set5": "set5", "Set14": "set14", "B100": "b100", "Urban100": "urban100", "Manga109": "manga109"}
"""The paper's sets by their usual names, each with its key of [paper]."""
IN_PAPER = {name.lower(): key for name, key in SETS.items()} | {"bsd100": "b100"}
"""The same by any name of theirs, in lower case."""
IDLE = frozenset(
    (
        *("description", "seed", "data.store", "data.monitor", "data.loader", "data.prefetch", "train.micro_batch"),
        *("train.deterministic", "train.log_every", "train.validate_every", "train.checkpoint_every"),
        *("train.keep_checkpoints", "train.timeout", "train.compile", "train.device", "train.baseline"),
        *("train.trackers", "train.price_per_hour"),
    )
)
"""Keys in which runs of one recipe may differ: they change chance, or nothing."""
PLACES = frozenset(
    (
        *("data.train", "data.validation", "data.test", "data.source", "data.centroids", "teacher.checkpoint"),
        *("model.start_from", "train.precision", "optimizer.backend"),
    )
)
"""Keys of the material and the machine, which no recipe of the paper fixes."""


class Nearest(NamedTuple):
    """A shipped recipe.

    Attributes:
        name: its name.
        recipe: itself.
        differing: the keys in which the given recipe differs from it.
    """

    name: str
    recipe: Config
    differing: list[str]


def nearest(recipe: Config) -> Nearest | None:
    """The shipped recipe of the same scale, network and objective that differs in the fewest keys, if there is one."""
    found = []
    for name, shipped in _shipped():
        same = recipe.objective.name == shipped.objective.name
        if same and recipe.scale == shipped.scale and network_of(recipe) == network_of(shipped):
            keys = [key for key in differences(shipped, recipe) if key not in IDLE | PLACES]
            if not recipe.needs_centroids:
                keys = [key for key in keys if not key.startswith(("teacher.", "objective.alpha"))]
            found.append(Nearest(name, shipped, keys))
    return min(found, key=lambda one: len(one.differing), default=None)


def network_of(recipe: Config) -> dict[str, Any]:
    """What a recipe says of the network itself."""
    return recipe.model.model_dump(exclude={"start_from"})


@functools.cache
def _shipped() -> list[tuple[str, Config]]:
    return [(name, load(name)) for name in recipe_names()]


def paper_scores(recipe: Config, names: Iterable[str]) -> dict[str, Score]:
    """The scores in a shipped recipe's row of the paper, by those of some sets that the row has."""
    known = [name for name in names if name.lower() in IN_PAPER]
    scores = {name: getattr(recipe.paper, IN_PAPER[name.lower()]) for name in known}
    return {name: score for name, score in scores.items() if score}
