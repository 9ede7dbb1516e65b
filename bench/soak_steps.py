"""A long run of a tiny network holds no more memory, files or threads at its end than soon after its beginning.

    OMP_NUM_THREADS=1 python -m bench.soak_steps FOLDER [STEPS]

100 000 steps, with all that a run does beside them: rows, validations, checkpoints, TensorBoard, the crops of images
that change. The table grows meanwhile. It ends with exit status 1 where the memory that is the process's own has grown
by a megabyte since the first thousand steps, or there are more files or threads.
"""

import sys
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from eco_fast import train
from eco_fast.training import loop
from eco_fast.training.step import TrainStep

MEGABYTE = 1_000_000
EVERY = 500  # steps between checkpoints and validations
FIRST, BETWEEN = 1250, 10_000  # step of the first look, and steps between two: never beside a checkpoint
CHANGES = {
    "data.train": ["builtin:train"],
    "data.validation": ["builtin:validation"],
    "data.test": [],
    "data.patch": 8,
    "data.loader": "plain",
    "model.features": 4,
    "model.blocks": 1,
    "objective.name": "vanilla",
    "train.batch_size": 2,
    "train.log_every": 500,
    "train.validate_every": 25_000,
    "train.checkpoint_every": EVERY,
    "train.baseline": False,
    "train.device": "cpu",
}


class Held(NamedTuple):
    """What a process holds."""

    step: int
    own: int
    """Bytes of memory that belong to no file."""
    files: int
    threads: int


def held(step: int) -> Held:
    """What this process holds before a step."""
    lines = (line.split() for line in Path("/proc/self/smaps_rollup").read_text(encoding="ascii").splitlines()[1:])
    sizes = {name: 1024 * int(size) for name, size, _ in lines}
    files, threads = (sum(1 for _ in Path("/proc/self", kind).iterdir()) for kind in ("fd", "task"))
    return Held(step, sizes["Anonymous:"] + sizes["Swap:"], files, threads)


def main(folder: Path, steps: int) -> bool:
    """Train, and look now and then; whether it held no more at the end."""
    looks: list[Held] = []

    class Watched(TrainStep):
        def __call__(self, batch: Any) -> Tensor:
            if batch.step % BETWEEN == FIRST or batch.step == steps - EVERY // 2:
                looks.append(now := held(batch.step))
                grown = f"{(now.own - looks[0].own) / MEGABYTE:+.2f}"
                print(
                    f"| {now.step} | {now.own / MEGABYTE:.1f} MB | {grown} | {now.files} | {now.threads} |", flush=True
                )
            return super().__call__(batch)

    setattr(loop, "TrainStep", Watched)  # noqa: B010 - the module exports it to nobody
    torch.set_num_threads(1)
    print("| step | memory | since the first | files | threads |\n|---|---|---|---|---|", flush=True)
    train("quickstart", folder, {**CHANGES, "train.steps": steps})
    first, last = looks[0], looks[-1]
    return last.own < first.own + MEGABYTE and last.files <= first.files and last.threads <= first.threads


if __name__ == "__main__":
    sys.exit(not main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 100_000))
