"""The most memory that a step needs, against what it must hold; and whether a longer run grows.

python -m bench.memory_step [RECIPE [BATCH]]      EDSR x2 with batch 16: takes minutes on a CPU
"""

import os
import sys
from pathlib import Path

import torch
from eco_fast_kernels import crop_side

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.batch import Batch, Conditions, Crops, Samples
from eco_fast.training.profiling import saved_bytes
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep


def a_batch(recipe: Config) -> Batch[Samples]:
    side = crop_side(recipe.scale, recipe.data.patch)
    hr, sr = torch.randint(0, 256, (2, recipe.train.batch_size, side, side, 3), dtype=torch.uint8)
    alpha = torch.tensor(0.5)
    transposed = torch.zeros(recipe.train.batch_size, dtype=torch.bool)
    conditions = Conditions(transposed, alpha, alpha, torch.tensor(1e-4), noise=None, drop_path_uniforms=None)
    return Batch(recipe.train.steps // 2, Samples.of(Crops(hr, sr), conditions))


def build_step(recipe: Config) -> tuple[TrainStep, TrainingState]:
    state = TrainingState(recipe, "cpu", None, "memory")
    return TrainStep(state, recipe.train.batch_size), state


def load_libraries() -> None:
    """A step of next to nothing, so that the modules and the machine code that a step loads count before it."""
    tiny = config.load(
        "quickstart", ["model.features=8", "model.blocks=1", "train.batch_size=1", "train.compile=false"]
    )
    build_step(tiny)[0](a_batch(tiny))


def resident() -> int:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def peak_during(step: TrainStep, batch: Batch[Samples]) -> int:
    """The most resident memory during a step."""
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # forget the earlier peak
    step(batch)
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(name: str, count: int) -> None:
    load_libraries()
    recipe = config.load(name, [f"train.batch_size={count}", "train.compile=false", "optimizer.name=adam"])
    batch = a_batch(recipe)
    before = resident()
    step, state = build_step(recipe)
    weights = sum(4 * parameter.numel() for parameter in state.network.parameters())
    saved = saved_bytes(state.network.parameters(), lambda: step.loss(batch.samples, torch.ones(())))
    step(batch)  # makes the optimizer's state
    peak = peak_during(step, batch) - before
    computed = 4 * weights + saved
    print(f"{name}, batch {count}, eager: weights, gradients and two moments {4 * weights / 1e6:.0f} MB, ", end="")
    print(f"saved activations {saved / 1e6:.0f} MB, together {computed / 1e6:.0f} MB; ", end="")
    print(f"measured peak {peak / 1e6:.0f} MB, {peak / computed - 1:+.1%}", flush=True)

    small = config.load("quickstart", ["train.steps=100000", "train.batch_size=8", "train.compile=true"])
    batch = a_batch(small)
    step, _ = build_step(small)
    for index in range(2000):
        step(batch)
        if index == 199:
            early = resident()
    print(f"quickstart, compiled: {(resident() - early) / 1e6:+.1f} MB between step 200 and step 2000")


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else "edsr_x2_eco", int(sys.argv[2]) if len(sys.argv) > 2 else 16)
