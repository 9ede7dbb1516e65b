"""Making a stretch again, by the trainer itself, in a folder of its own."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.intervals import share_of_time
from eco_fast.config.resuming import COURSE, MAY_DIFFER, REPORTS, ROUNDING, differing
from eco_fast.training.checkpoints import read_whole_state, state_path
from eco_fast.training.forecast import Forecast
from eco_fast.training.loop import Repetition, train_network
from eco_fast.training.run_folder import (
    CHECKPOINTS,
    MICRO_BATCH,
    RECIPE,
    RunFolder,
    environment,
    other_bits,
    read_rows,
    starts_of,
)
from eco_fast.training.state import initial_network
from eco_fast.training.verify.audited import KeptTraining, RefutedError, Stretch, recipe_of
from eco_fast.training.verify.evidence import Evidence
from eco_fast.training.verify.tolerance import beyond_tolerance
from eco_fast.utils.device import device_name, pick_device
from eco_fast.utils.files import name_damaged, write_text

KINDS = {
    "network": "weight",
    "averaged": "running average of",
    "updater.optimizer": "state of the optimizer,",
    "updater": "counter",
}
"""What the parts of a training state are called, by the beginning of their place in it."""


@dataclass(frozen=True)
class Repeated:
    """A stretch that was made again, and came out as it was."""

    stretch: Stretch
    distance: float
    """Of the weights, as a share of the way that they went; 0: everything is equal to the bit."""


def repeat(stretch: Stretch, evidence: Evidence, given: Sequence[str], work: Path) -> Repeated:
    """Train from one kept state to the next one, and compare all that the run has kept of it.

    Args:
        stretch: which.
        evidence: what it reads.
        given: keys whose values are not those of then.
        work: a folder, which is emptied first.

    Raises:
        RefutedError: something differs; names the first.
    """
    training = stretch.training
    kept = {name: stretch.read(name) for name in training.states[stretch.end]}
    state = next(iter(kept.values()))
    before = stretch.read(training.states[stretch.begin][0]) if stretch.begin else None
    recipe = recipe_of_stretch(stretch, recipe_of(state), given)
    shutil.rmtree(work, ignore_errors=True)
    place_state(work, recipe, stretch)
    rows = [row for row in read_rows(training.folder) if stretch.begin < row["step"] <= stretch.end]
    validated = None
    if share_of_time(recipe.train.validate_every) is not None:  # the clock had chosen when
        validated = frozenset(row["step"] for row in rows if "psnr_y" in row)
    sr, sets = evidence.of(training.label)
    with RunFolder(work, recipe, resume=True) as run:
        train_network(
            run,
            evidence.hr,
            sr,
            sets,
            training.label,
            forecast=Forecast(least=recipe.train.steps + 1),
            repetition=Repetition(stretch.end, validated),
        )
    made, made_rows = read_whole_state(state_path(work / CHECKPOINTS, "last")), read_rows(work)
    found = [found for one in kept.values() if (found := difference(made, one))]
    found += filter(None, [difference_of_rows(made_rows, rows)])
    if not found:
        return Repeated(stretch, 0.0)
    reasons = why_not_to_the_bit(stretch, recipe, recipe_of(state))
    if not reasons:
        raise RefutedError(stretch, found[0] + changed_on_the_way(before, state))
    fresh = initial_network(recipe)[0].state_dict() if before is None else {}
    start = before or {"network": fresh, "averaged": fresh}
    for one in kept.values():
        distance, beyond = beyond_tolerance(start, made, one, made_rows, rows)
        if beyond:
            raise RefutedError(stretch, f"{beyond}, which is more than rounding makes ({reasons[0]})")
    return Repeated(stretch, max(distance, math.ulp(0)))


def recipe_of_stretch(stretch: Stretch, then: Config, given: Sequence[str]) -> Config:
    """The recipe of its end, at the places of now; it keeps no more checkpoints than has to be, and tells nobody."""
    training = stretch.training
    values = config.flat(then)
    decide = [key for key, meaning in MAY_DIFFER.items() if meaning in (COURSE, REPORTS, ROUNDING) and key not in given]
    changes = {key: values[key] for key in decide if key in values}
    changes |= {"train.trackers": (), "train.keep_checkpoints": 1, "train.checkpoint_every": then.train.steps}
    chosen = training.folder / MICRO_BATCH
    if changes.get("train.micro_batch") == "auto" and chosen.is_file():
        with name_damaged(chosen):
            noted = json.loads(chosen.read_text(encoding="utf-8"))
            if noted["device"] == device_name(pick_device(training.recipe.train.device)):
                changes["train.micro_batch"] = int(noted["patches"])
    return config.changed(training.recipe, changes, str(training.folder))


def place_state(work: Path, recipe: Config, stretch: Stretch) -> None:
    """A run folder that stopped where the stretch begins."""
    write_text(work / RECIPE, config.dump(recipe))
    if stretch.begin:
        training = stretch.training
        (work / CHECKPOINTS).mkdir()
        source = state_path(training.checkpoints, training.states[stretch.begin][0])
        shutil.copyfile(source, state_path(work / CHECKPOINTS, "last"))


def why_not_to_the_bit(stretch: Stretch, recipe: Config, then: Config) -> list[str]:
    """What makes the last bits of the weights others than they were; nothing: they are to be the same."""
    now, starts = environment(recipe), starts_of(stretch.training.folder)
    reasons = [change.removeprefix("warning: ") for start in starts for change in other_bits(start, now)]
    reasons += ["the run has kept no environment.json"] * (not starts)
    differ = config.differences(then, recipe)
    reasons += [f"{key} is not what it was" for key in ("train.compile", "train.deterministic") if key in differ]
    if recipe.train.micro_batch == "auto" or ("train.micro_batch" in differ and then.train.micro_batch != "auto"):
        reasons.append("train.micro_batch is not what it was")
    if pick_device(recipe.train.device) != "cpu" and not recipe.train.deterministic:
        reasons.append("without train.deterministic a GPU makes other bits each time")
    return reasons


@contextmanager
def threads_of(training: KeptTraining) -> Iterator[None]:
    """Compute with as many threads as the training's last start: others add in another order."""
    before = torch.get_num_threads()
    torch.set_num_threads(next((start["threads"] for start in reversed(starts_of(training.folder))), before))
    try:
        yield
    finally:
        torch.set_num_threads(before)


def changed_on_the_way(before: Mapping[str, Any] | None, state: Mapping[str, Any]) -> str:
    """What is to be said of a stretch on whose way a person steered: the step is kept nowhere."""
    if before is None:
        return ""
    lines = differing(recipe_of(before), recipe_of(state))[1]
    steered = [line for line in lines if line.endswith((COURSE, REPORTS))]
    return f" (on the way {steered[0].partition(':')[0]})" if steered else ""


def difference(made: Mapping[str, Any], kept: Mapping[str, Any]) -> str:
    """The first difference of two training states in words, and how many there are; nothing where there is none."""
    ours, theirs = (dict(leaves_of(one)) for one in (made, kept))
    wrong = [place for place in {**theirs, **ours} if not same_bits(ours.get(place), theirs.get(place))]
    if not wrong:
        return ""
    place = next((one for one in wrong if one.startswith(tuple(KINDS))), wrong[0])
    kind = next((prefix for prefix in KINDS if place.startswith(f"{prefix}.")), "")
    name = f"{KINDS[kind]} {place.removeprefix(f'{kind}.')}" if kind else place
    more = f", and {len(wrong) - 1} more of {len(theirs)} values" if len(wrong) > 1 else ""
    return f"{name} is not what the training makes{_by_how_much(ours.get(place), theirs.get(place))}{more}"


def _by_how_much(made: Any, kept: Any) -> str:
    if isinstance(made, Tensor) and isinstance(kept, Tensor) and made.shape == kept.shape and made.numel() > 1:
        return f" (up to {(made.double() - kept.double()).abs().max().item():.3g} off)"
    if made is None or kept is None:
        return " (it is missing)" if kept is None else " (there is none)"
    ours, theirs = (one.item() if isinstance(one, Tensor) and one.numel() == 1 else one for one in (made, kept))
    return f" ({theirs}, repeated {ours})"


def leaves_of(value: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """The values of a training state, by their place in it; without its recipe and its names."""
    if isinstance(value, dict | list | tuple):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            if place or key not in ("config", "names"):
                yield from leaves_of(item, f"{place}.{key}" if place else str(key))
    else:
        yield place, value


def same_bits(first: Any, second: Any) -> bool:
    """Whether two values of a training state are one, to the bit and the type."""
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        alike = first.dtype == second.dtype and first.shape == second.shape
        return alike and torch.equal(*(one.contiguous().flatten().view(torch.uint8) for one in (first, second)))
    return type(first) is type(second) and repr(first) == repr(second)


def difference_of_rows(made: Sequence[Mapping[str, Any]], kept: Sequence[Mapping[str, Any]]) -> str:
    """The first difference of the rows of metrics.jsonl, in words; nothing where there is none."""
    for index in range(max(len(made), len(kept))):
        ours, theirs = (rows[index] if index < len(rows) else None for rows in (made, kept))
        if ours is None or theirs is None or ours["step"] != theirs["step"]:
            row = min(filter(None, (ours, theirs)), key=lambda one: one["step"])
            missing = theirs is None or (ours is not None and ours["step"] < theirs["step"])
            return f"metrics.jsonl {'lacks a row' if missing else 'has a row too many'} of step {row['step']}"
        for key in {**theirs, **ours}:
            if not same_bits(ours.get(key), theirs.get(key)):
                said = f"{key} of step {ours['step']} is {theirs.get(key)}, repeated {ours.get(key)}"
                return f"metrics.jsonl: {said}"
    return ""
