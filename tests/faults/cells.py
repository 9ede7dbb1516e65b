"""Fault x place x number of ranks: a cell is a run that meets the fault, what it says, and the run that goes on."""

import multiprocessing.connection
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from eco_fast.data.folders import builtin_images
from eco_fast.data.images import read_image, write_png
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from eco_fast.training.checkpoints import load_state
from eco_fast.training.run_folder import read_rows
from tests.faults.injection import NANS, PLACES, STEP, TIMEOUT, Meeting, run_rank
from tests.helpers import HANGS, PROCESSES

FAULTS = ("killed", "stopped", "cut", "NaN", "full", "corrupt", "slow")
WORLDS = {2: 1, 4: 2}
"""Numbers of ranks, and with how many the run goes on."""
STEPS = 12
RECIPE = f"""
[data]
train = ["hr"]
validation = ["validation"]
patch = 8
loader = "plain"
[model]
features = 8
blocks = 1
[teacher]
checkpoint = "teacher.safetensors"
[objective]
name = "eco"
[optimizer]
learning_rate = 1e-3
[train]
steps = {STEPS}
batch_size = 4
log_every = 1
validate_every = 6
checkpoint_every = 3
timeout = {TIMEOUT}
trackers = []
device = "cpu"
compile = false
"""
TRAIN = ["train", "recipe.toml", "--run", "run"]
SILENT = "without word from rank {victim}: killed or stalled?"
ON_DISK = "cannot be read or written (File too large)"
SKIPPED = f"skipped step {STEP + 1}: loss "
NOT_FINITE = "not finite"


@dataclass(frozen=True)
class Cell:
    """One of the matrix."""

    fault: str
    place: str
    world: int

    def __str__(self) -> str:
        return f"{self.fault} x {self.place} x {self.world}"

    @property
    def victim(self) -> int:
        """The rank that meets the fault: the first one, where it alone does what is to fail."""
        if self.place == "checkpoint" or self.fault == "full" or (self.fault, self.place) == ("NaN", "update"):
            return 0
        return 1

    @property
    def impossible(self) -> str:
        """Why there is no such fault; empty where there is."""
        if self.fault == "NaN" and self.place not in NANS:
            return {
                "start": "no number has been computed",
                "centroids": "images are bytes, and a teacher with a weight that is no number is refused",
                "loading": "crops are bytes",
                "validation": "what is scored is bytes; a weight that is no number is found at the checkpoint",
            }[self.place]
        if self.fault == "corrupt" and self.place not in ("start", "centroids", "loading", "validation"):
            return "no image is read there"
        return ""

    @property
    def said(self) -> str:
        """What some rank says; empty where there is nothing to say."""
        if self.fault in ("killed", "stopped", "cut"):
            return SILENT.format(victim=self.victim)
        if self.fault == "NaN":
            return NOT_FINITE if self.place in ("update", "checkpoint") else SKIPPED
        if self.fault == "corrupt":
            return "damaged"
        return ON_DISK if self.fault == "full" else ""

    @property
    def ends(self) -> bool:
        """Whether it ends the run."""
        return self.fault != "slow" and self.said != SKIPPED


CELLS = tuple(Cell(*one) for one in product(FAULTS, PLACES, WORLDS))


class LostError(AssertionError):
    """A cell that did not end as it has to."""


def prepare(folder: Path) -> Path:
    """A folder with images, a teacher, a recipe, and the run `unbroken` of one rank."""
    photo = read_image(dict(builtin_images("test"))["builtin/chelsea.png"])
    for index in range(5):
        write_png(folder / "hr" / f"{index}.png", photo[60 + 20 * index :, 120:][:60, :64])
    write_png(folder / "validation" / "eye.png", photo[70:110, 150:190])
    torch.manual_seed(7)
    save_network(folder / "teacher.safetensors", EDSR(2, 8, 1))
    (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
    finish(folder, 1, [*TRAIN[:-1], "unbroken"], "the unbroken run")
    return folder


def launch(folder: Path, world: int, arguments: Sequence[str], meeting: Meeting | None = None) -> list[int]:
    """The exit codes of a command's ranks. One that is stopped is killed when all others have ended, as by torchrun."""
    store = TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    ranks = [
        PROCESSES.Process(target=run_rank, args=(folder, rank, world, store.port, list(arguments), meeting))
        for rank in range(world)
    ]
    try:
        for rank in ranks:
            rank.start()
        waited = ranks
        if meeting is not None and meeting.fault == "stopped":
            waited = [one for rank, one in enumerate(ranks) if rank != meeting.victim]
        left = {one.sentinel for one in waited}
        while left:
            ended = multiprocessing.connection.wait(list(left), HANGS)
            if not ended:
                raise LostError("it hangs")
            left -= set(ended)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    return [int(rank.exitcode or 0) for rank in ranks]


def finish(folder: Path, world: int, arguments: Sequence[str], what: str) -> None:
    """Run a command whose ranks all have to end well; `what` it is, for when they do not."""
    codes = launch(folder, world, arguments)
    if any(codes):
        raise LostError(f"{what}: exit codes {codes}:\n{words(folder, world)}")


def words(folder: Path, world: int) -> str:
    """All that the ranks have said."""
    return "".join((folder / f"{rank}.{name}").read_text("utf-8") for rank in range(world) for name in ("out", "err"))


def meet(cell: Cell, prepared: Path, folder: Path) -> str:
    """Run a cell in a new folder; returns the sentence by which it ended.

    Raises:
        LostError: it was not named, something is lost, or the run that went on did not end as one without faults.
    """
    shutil.copytree(prepared, folder, ignore=lambda *_: {"unbroken"})
    whole = spoil(cell, folder)
    meeting = Meeting(cell.fault, cell.place, cell.victim, PROCESSES.Array("q", cell.world, lock=False))
    codes = launch(folder, cell.world, TRAIN, None if whole else meeting)
    said = words(folder, cell.world)
    sentence = next((line.strip() for line in said.splitlines() if cell.said and cell.said in line), "")
    if cell.said and not sentence:
        raise LostError(f"{cell}: nobody says {cell.said!r}, exit codes {codes}:\n{said}")
    if cell.ends != all(codes) or cell.ends != any(codes):
        raise LostError(f"{cell}: exit codes {codes}:\n{said}")
    saved = load_state(folder / "run" / "checkpoints")
    if not whole and (0 if saved is None else int(saved.state["step"])) < int((folder / "met").read_text("utf-8")):
        raise LostError(f"{cell}: a checkpoint is lost")
    if cell.ends:
        if whole:
            whole()
        finish(folder, WORLDS[cell.world], [*TRAIN, "--resume"], f"{cell}: does not go on")
    compare(cell, folder / "run", prepared / "unbroken")
    return sentence


def spoil(cell: Cell, folder: Path) -> Any:
    """Cut an image file short before the run reads it; returns what puts it back."""
    if cell.fault != "corrupt" or cell.place not in ("start", "validation"):
        return None
    image = folder / ("hr/1.png" if cell.place == "start" else "validation/eye.png")
    content = image.read_bytes()
    image.write_bytes(content[:-200])
    return lambda: image.write_bytes(content)


def compare(cell: Cell, run: Path, unbroken: Path) -> None:
    """Each step was done once; losses are those of the unbroken run up to rounding, and so are the weights.

    Where a step was skipped, that is so up to this step.
    """
    rows, others = ([row for row in read_rows(one) if "loss" in row] for one in (run, unbroken))
    if [row["step"] for row in rows] != list(range(1, STEPS + 1)):
        raise LostError(f"{cell}: steps {[row['step'] for row in rows]}")
    skips = cell.fault == "NaN" and not cell.ends
    for row, other in list(zip(rows, others, strict=True))[: STEP if skips else STEPS]:
        if abs(row["loss"] - other["loss"]) > 1e-5 * other["loss"]:
            raise LostError(f"{cell}: step {row['step']} has a loss of {row['loss']} instead of {other['loss']}")
    if sum(row["skipped"] for row in rows[-1:]) != skips:
        raise LostError(f"{cell}: {rows[-1]['skipped']} steps were skipped")
    made, expected = (load_file(one / "checkpoints" / "last.safetensors") for one in (run, unbroken))
    for name, weight in expected.items():
        if not (made[name] - weight).norm() <= (1.0 if skips else 1e-4) * weight.norm():
            raise LostError(f"{cell}: {name} is another")
