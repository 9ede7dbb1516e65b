"""What can be done to the run of `tamper.py`, in the folder that holds it, its images and its teacher.

It is thorough: hashes are made anew, and what is kept twice is changed twice, unless a case says so.
"""

import hashlib
import json
import shutil
import tomllib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch

from eco_fast import config
from eco_fast.data.store import MANIFEST, Store, digest_of
from eco_fast.data.store_table import Entries
from eco_fast.models import METADATA, read_state, save_network, save_weights
from eco_fast.models.edsr import EDSR
from eco_fast.training.checkpoints import HASH, numbered, state_path, weights_path
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.run_folder import METRICS, PINNED, RECIPE, read_rows
from eco_fast.training.step import TrainStep
from eco_fast.utils.content_hash import content_hash

State = dict[str, Any]
RUN = Path("run")
STATES = RUN / "checkpoints"


class Tampering(NamedTuple):
    """What is done to a run, and what is said of it."""

    do: Callable[[], object]
    """In the folder that holds run, images, validation images and teacher."""
    said: str
    """With what the sentence begins, after the training's name."""
    released: Sequence[str] = ()
    """Published files to check."""


def names_at(step: int) -> list[str]:
    """The states of a step."""
    names = [*numbered(STATES), "best", "last"]
    return [one for one in names if torch.load(state_path(STATES, one), weights_only=True)["step"] == step]


def edit_states(names: Sequence[str], change: Callable[[State], object], *, rehash: bool = True) -> None:
    """Change states, and their hashes."""
    for name in names:
        state = torch.load(state_path(STATES, name), weights_only=True)
        kept = state.pop(HASH)
        change(state)
        torch.save({**state, HASH: content_hash(state) if rehash else kept}, state_path(STATES, name))


def edit_weights(path: Path, change: Callable[[State], object]) -> None:
    """Change a file of weights, and its hash."""
    weights, metadata = read_state(path)
    change(weights)
    save_weights(path, weights, {METADATA: metadata[METADATA]})


def nudge(state: State) -> None:
    """Move one weight a little, but further than rounding does."""
    state["head.0.weight"][0, 0, 0, 0] += 1e-4


def nudge_part(*place: str | int) -> Callable[[State], object]:
    """Move a value of a part of a training state."""

    def change(state: State) -> None:
        part: Any = state
        for key in place:
            part = part[key]
        part.view(-1)[0] += 1

    return change


def nudge_checkpoint(step: int) -> None:
    """Move a weight of a step's checkpoints, in their states and their files of weights."""
    for name in names_at(step):
        for part in ("network", "averaged"):
            edit_states([name], lambda state, part=part: nudge(state[part]))  # type: ignore[misc]
        edit_weights(weights_path(STATES, name), nudge)


def change_recipe(**changes: Any) -> None:
    """Change keys in the recipe and in each state's copy of it."""
    changed = {key.replace("__", "."): value for key, value in changes.items()}

    def other(text: str) -> str:
        return config.dump(config.changed(config.validate(tomllib.loads(text), "it"), changed, "it"))

    (RUN / RECIPE).write_text(other((RUN / RECIPE).read_text()))
    edit_states([*numbered(STATES), "best", "last"], lambda state: state.update(config=other(state["config"])))


def change_line(old: str, new: str) -> None:
    """Change the kept recipe alone."""
    text = (RUN / RECIPE).read_text()
    assert old in text
    (RUN / RECIPE).write_text(text.replace(old, new))


def edit_rows(change: Callable[[list[State]], object]) -> None:
    """Change metrics.jsonl."""
    rows = read_rows(RUN)
    change(rows)
    (RUN / METRICS).write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_pixels(folder: Path, kind: str = "") -> None:
    """Change an image of a store: one value of it; or all, its hashes, and those that the run noted as `kind`."""
    store = Store(folder)
    path, entry = store.path(0), store.entries[0]
    pixels = np.fromfile(path, dtype=np.uint8)
    pixels[entry.offset : entry.offset + (entry.size if kind else 1)] ^= 255
    pixels.tofile(path)
    if not kind:
        return
    image = hashlib.sha256(pixels[entry.offset : entry.offset + entry.size].tobytes())
    manifest = json.loads((folder / MANIFEST).read_text())
    table = (folder / manifest["table"]).read_bytes().replace(bytes.fromhex(entry.sha256), image.digest())
    assert Entries.decode(table, manifest["images"])[0].sha256 == image.hexdigest()
    (folder / manifest["table"]).write_bytes(table)
    manifest["table_sha256"] = hashlib.sha256(table).hexdigest()
    manifest["sha256"] = digest_of(manifest)
    (folder / MANIFEST).write_text(json.dumps(manifest))
    pinned = (RUN / PINNED).read_text()
    (RUN / PINNED).write_text(pinned.replace(entry.sha256, image.hexdigest()))
    for centroids in folder.glob("centroids/*"):  # which say of what they were made
        shutil.rmtree(centroids)


def centroids() -> Path:
    """Where they are."""
    (found,) = (RUN / "store" / "centroids").iterdir()
    return found


def another_teacher() -> None:
    """Put another network in the teacher's place."""
    save_network(Path("teacher.safetensors"), EDSR(2, 8, 1))


def train_again(times: int, **changes: Any) -> None:
    """Train the run anew, with its third step made so many times."""
    step = TrainStep.__call__

    def made(self: TrainStep, batch: Any) -> Any:
        return [step(self, batch) for _ in range(times if batch.step == 2 else 1)]

    recipe = config.load(str(RUN / RECIPE))
    shutil.rmtree(RUN)
    with mock.patch.object(TrainStep, "__call__", made):
        run_recipe(config.changed(recipe, changes, "it"), RUN)


def publish() -> None:
    """A published file with another weight."""
    shutil.copyfile(weights_path(STATES, "last"), "published.safetensors")
    edit_weights(Path("published.safetensors"), nudge)


def of_another_run() -> None:
    """Let a checkpoint be one of the same recipe with another seed."""
    shutil.copytree(RUN, "kept")
    train_again(1, seed=1)
    shutil.move(RUN, "other")
    shutil.move("kept", RUN)
    for name in names_at(4):
        mine = torch.load(state_path(STATES, name), weights_only=True)
        theirs = torch.load(f"other/checkpoints/{STEP_4}.state.pt", weights_only=True)
        torch.save({**theirs, "config": mine["config"], "names": mine["names"]}, state_path(STATES, name))
        edit_states([name], lambda state: state)


STEP_2, STEP_4 = "step-00000002", "step-00000004"
FIRST, SECOND, THIRD, ALL = "steps 0 to 2", "steps 2 to 4", "steps 4 to 6", "steps 0 to 6"
ADAM = ("updater", "optimizer", "state", 0)
TAMPERINGS: dict[str, Tampering] = {
    "weight of a checkpoint": Tampering(lambda: nudge_checkpoint(4), SECOND),
    "weight of the first checkpoint": Tampering(lambda: nudge_checkpoint(2), FIRST),
    "weight of the last checkpoint": Tampering(lambda: nudge_checkpoint(6), THIRD),
    "weight in the best state alone": Tampering(
        lambda: edit_states(["best"], lambda state: nudge(state["averaged"])), "steps"
    ),
    "weight, with the hash of before": Tampering(
        lambda: edit_states(names_at(4), lambda state: nudge(state["network"]), rehash=False), SECOND
    ),
    "running average": Tampering(lambda: edit_states(names_at(4), lambda state: nudge(state["averaged"])), SECOND),
    "first moment": Tampering(lambda: edit_states(names_at(4), nudge_part(*ADAM, "exp_avg")), SECOND),
    "second moment": Tampering(lambda: edit_states(names_at(4), nudge_part(*ADAM, "exp_avg_sq")), SECOND),
    "optimizer's count of steps": Tampering(lambda: edit_states(names_at(2), nudge_part(*ADAM, "step")), FIRST),
    "counter of skipped steps": Tampering(lambda: edit_states(names_at(4), nudge_part("updater", "skipped")), SECOND),
    "best validation": Tampering(lambda: edit_states(names_at(4), lambda state: state.update(best=50.0)), SECOND),
    "seed": Tampering(lambda: change_recipe(seed=1), FIRST),
    "learning rate": Tampering(lambda: change_recipe(optimizer__learning_rate=1.1e-3), FIRST),
    "learning rate in the kept recipe": Tampering(lambda: change_line("rate = 0.001\n", "rate = 0.002\n"), THIRD),
    "decay of the moments": Tampering(lambda: change_recipe(optimizer__betas=[0.9, 0.99]), FIRST),
    "course of alpha": Tampering(lambda: change_recipe(objective__alpha_shift=1.0), SECOND),
    "alpha by sample": Tampering(lambda: change_recipe(objective__alpha_sample=True), SECOND),
    "batch size": Tampering(lambda: change_recipe(train__batch_size=3), FIRST),
    "batch size in the kept recipe": Tampering(lambda: change_line("batch_size = 2", "batch_size = 3"), THIRD),
    "number of steps": Tampering(lambda: change_recipe(train__steps=7), FIRST),
    "recipe of one checkpoint": Tampering(
        lambda: edit_states(names_at(4), lambda one: one.update(config=one["config"].replace("seed = 0", "seed = 1"))),
        SECOND,
    ),
    "pixel of a training image": Tampering(lambda: edit_pixels(RUN / "store"), ALL),
    "training image swapped": Tampering(lambda: edit_pixels(RUN / "store", "training images"), ALL),
    "pixel of a centroid": Tampering(lambda: edit_pixels(centroids()), ALL),
    "centroid swapped": Tampering(lambda: edit_pixels(centroids(), "centroids"), ALL),
    "teacher": Tampering(another_teacher, ALL),
    "validation image": Tampering(
        lambda: shutil.copyfile("images/a.png", "validation/eye.png"),
        ALL,
    ),
    "step left out": Tampering(lambda: train_again(0), SECOND),
    "step made twice": Tampering(lambda: train_again(2), SECOND),
    "checkpoint of another run": Tampering(of_another_run, SECOND),
    "checkpoint under another step's name": Tampering(
        lambda: shutil.copyfile(state_path(STATES, STEP_4), state_path(STATES, STEP_2)), FIRST
    ),
    "loss row": Tampering(lambda: edit_rows(lambda rows: rows[0].update(loss=1.0)), FIRST),
    "validation row": Tampering(
        lambda: edit_rows(lambda rows: next(row for row in rows if "psnr_y" in row).update(psnr_y=50.0)), FIRST
    ),
    "rows removed": Tampering(lambda: edit_rows(lambda rows: rows.__delitem__(slice(3, 5))), SECOND),
    "row too many": Tampering(lambda: edit_rows(lambda rows: rows.insert(0, rows[0])), FIRST),
    "weight of the last weights": Tampering(lambda: edit_weights(weights_path(STATES, "last"), nudge), THIRD),
    "weight of the best weights": Tampering(lambda: edit_weights(weights_path(STATES, "best"), nudge), "steps"),
    "published weight": Tampering(publish, THIRD, ("published.safetensors",)),
}
"""By what is changed, in the run "EDSR, eco": three stretches of two steps, in the first of which alpha is 0."""
