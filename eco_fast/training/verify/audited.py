"""What is audited: the trainings of a run, and the stretches between their kept checkpoints."""

import random
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.resuming import SAME_RESULT, differing
from eco_fast.training.checkpoints import numbered, read_whole_state, state_path
from eco_fast.training.run_folder import CHECKPOINTS, LOCK, RECIPE
from eco_fast.utils.locks import holder_of

STUDENT = "student"


@dataclass(frozen=True)
class KeptTraining:
    """One training, as its run folder has kept it."""

    label: str
    """Student, teacher or baseline."""
    folder: Path
    recipe: Config
    """The folder's, with places that may be other ones now."""
    states: Mapping[int, Sequence[str]]
    """The names of the kept states, by their step, in order."""

    @property
    def checkpoints(self) -> Path:
        """Where they are."""
        return self.folder / CHECKPOINTS

    @property
    def last(self) -> int:
        """The step of the newest state."""
        return max(self.states)

    @property
    def whole(self) -> "Stretch":
        """All of it."""
        return Stretch(self, 0, self.last)

    def stretches(self) -> list["Stretch"]:
        """From each kept state to the next one; the first begins with a fresh network, at step 0."""
        return [Stretch(self, *ends) for ends in pairwise(sorted({0, *self.states}))]


@dataclass(frozen=True)
class Stretch:
    """The steps between two states of a training, neither of which is missing."""

    training: KeptTraining
    begin: int
    end: int

    @property
    def steps(self) -> int:
        """How many they are."""
        return self.end - self.begin

    def __str__(self) -> str:
        return f"{self.training.label}, steps {self.begin} to {self.end}"

    def read(self, name: str) -> dict[str, Any]:
        """The state called `name`, of one of the stretch's ends, on the CPU.

        Raises:
            RefutedError: it is damaged, of another step or of another recipe.
        """
        path = state_path(self.training.checkpoints, name)
        state = read_kept(path, self)
        if state["step"] not in (self.begin, self.end):
            raise RefutedError(self, f"{path.name} is of step {state['step']}")
        if refused := differing(self.training.recipe, recipe_of(state))[0]:
            raise RefutedError(self, f"{path.name} is of another {refused[0]} than {RECIPE}")
        return state


class RefutedError(Exception):
    """Something of a run is not what its recipe makes; names the stretch, and what differs there."""

    def __init__(self, stretch: Stretch, what: str) -> None:
        super().__init__(f"{stretch}: {what}")


def recipe_of(state: Mapping[str, Any]) -> Config:
    """What a state was trained by."""
    return config.validate(tomllib.loads(state["config"]), "a training state")


def read_kept(path: Path, stretch: Stretch) -> dict[str, Any]:
    """A state that is there.

    Raises:
        RefutedError: it is not as it was written.
        ValueError: it is missing.
    """
    with refuting_damage(path, stretch):
        return read_whole_state(path)


@contextmanager
def refuting_damage(path: Path, stretch: Stretch) -> Iterator[None]:
    """Of a file that is there and cannot be read: raises RefutedError instead of ValueError."""
    try:
        yield
    except ValueError as error:
        if path.is_file():
            raise RefutedError(stretch, str(error)) from error
        raise


def trainings_of(run: Path, overrides: Mapping[str, Any]) -> list[KeptTraining]:
    """The trainings of a run, the student's last: no other depends on it.

    Args:
        run: the run folder.
        overrides: other values of keys that change no result, by key.

    Raises:
        ValueError: no run folder, one that is in use, or without a training state; or a key that changes the result.
        RefutedError: the teacher's or the baseline's recipe is not that of the run.
    """
    if not (run / RECIPE).is_file():
        raise ValueError(f"{run}: expected a run folder, but it holds no {RECIPE}; name one, such as runs/mine")
    if holder := holder_of(run / LOCK):
        raise ValueError(f"{run}: in use by {holder}; verify it when that has ended, or stop it")
    student = read_training(STUDENT, run, overrides)
    recipe = student.recipe
    others = {"teacher": recipe.self_teacher} if recipe.needs_centroids and recipe.teacher.checkpoint == "self" else {}
    others |= {"baseline": recipe.vanilla} if recipe.train.baseline else {}
    found = []
    for label, own in others.items():
        if (run / label / CHECKPOINTS).is_dir():
            found.append(read_training(label, run / label, overrides))
            if refused := differing(own, found[-1].recipe, same_course=True)[0]:
                raise RefutedError(found[-1].whole, f"its {RECIPE} has another {refused[0]} than the run's")
    return [*found, student]


def read_training(label: str, folder: Path, overrides: Mapping[str, Any]) -> KeptTraining:
    """One of them; raises as `trainings_of`, and where the last state is of another recipe than the folder's."""
    saved = config.load(str(folder / RECIPE))
    recipe = config.changed(saved, overrides, str(folder))
    if refused := [key for key in config.differences(saved, recipe) if key not in SAME_RESULT]:
        raise ValueError(f"--{refused[0]}: verify repeats the run's own recipe, unlike this; leave it out")
    checkpoints = folder / CHECKPOINTS
    states: dict[int, list[str]] = {int(name.removeprefix("step-")): [name] for name in numbered(checkpoints)}
    known = KeptTraining(label, folder, recipe, {recipe.train.steps: (), **states})
    for name in ("best", "last"):
        if name == "last" or state_path(checkpoints, name).is_file():
            state = read_kept(state_path(checkpoints, name), known.whole)
            states.setdefault(state["step"], []).append(name)
    training = KeptTraining(label, folder, recipe, dict(sorted(states.items())))
    if refused := differing(saved, recipe_of(state), same_course=True)[0]:
        raise RefutedError(training.stretches()[-1], f"{RECIPE} has another {refused[0]} than the last checkpoint")
    return training


def draw(trainings: Sequence[KeptTraining], wanted: int | None, seed: int) -> list[Stretch]:
    """The stretches to make again, in the order of the trainings and their steps.

    The student's last is always among them. A training that has kept the end of its course alone has a first stretch
    that is longer than all others together: it is made again only where there are no others to draw.

    Args:
        trainings: the run's.
        wanted: how many, at most; None: all.
        seed: decides which.
    """
    pool = [stretch for training in trainings for stretch in training.stretches()]
    if wanted is None or wanted >= len(pool):
        return pool
    *others, last = pool
    cheap = [one for one in others if one.begin or 2 * one.steps <= one.training.last]
    drawn = random.Random(seed).sample(cheap, min(wanted - 1, len(cheap)))  # noqa: S311 - to be drawn again by anybody
    return [stretch for stretch in pool if stretch in (*drawn, last)]
