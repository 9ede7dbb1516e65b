"""What is foretold of a run against what it takes, and `train.micro_batch = "auto"` against every size.

python -m bench.foretold time [RECIPE [SETTING ...]]     a dry run, then the run: 300 steps with validation
python -m bench.foretold sizes [RECIPE [SETTING ...]]    the step with the size that is chosen, and with every other one

Settings are as `train.batch_size=16`. The machine should do nothing else.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from eco_fast import config
from eco_fast.data.batch import Batch, BatchPlanner
from eco_fast.training.micro_batch import made_up, settle_micro_batch
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.validation import ValidationSets
from eco_fast.utils.device import pick_device

RUN = ["objective.name=vanilla", "train.steps=300", "train.validate_every=100", "train.checkpoint_every=100"]
PHOTOGRAPHS = ["data.train=builtin:train", "data.validation=builtin:validation", "data.test=builtin:test"]
ROUNDS = 9


def compare_with_a_run(recipe: str, settings: list[str]) -> None:
    """The lines of both in which a time is said."""
    with tempfile.TemporaryDirectory() as folder:
        given = [*RUN, *PHOTOGRAPHS, "train.baseline=false", *settings]
        command = [sys.executable, "-m", "eco_fast", "train", recipe, *(f"--{one}" for one in given), "--run", folder]
        for more in (["--dry-run"], []):
            done = subprocess.run([*command, *more], capture_output=True, text=True, check=True)
            said = ("time ", "student will take", "student took", "time: ", "student micro-batch")
            print("\n".join(line for line in done.stdout.splitlines() if line.startswith(said)), flush=True)


def compare_with_every_size(recipe: str, settings: list[str]) -> None:
    """Milliseconds of a step by size, in turns; the chosen one's excess over the best."""
    made = config.load(recipe, ["train.micro_batch=auto", *settings])
    device = pick_device(made.train.device)
    state, planner = TrainingState(made, device, None, "bench"), BatchPlanner(made, [(512, 512)])
    step = TrainStep(state, planner.count)
    with tempfile.TemporaryDirectory() as folder:
        settle_micro_batch(step, state, planner, ValidationSets(), Path(folder), "bench")
    chosen = step.micro_batches[-1].stop - step.micro_batches[-1].start
    batch = Batch(0, made_up(planner, device))
    sizes = {-(-planner.count // parts): parts for parts in range(planner.count, 0, -1)}
    spent: dict[int, list[float]] = {size: [] for size in sizes}
    for done in range(ROUNDS + 1):
        for size in sizes:
            step.take_at_once(size)
            began = time.perf_counter()
            step(batch).item()
            spent[size] += [time.perf_counter() - began] if done else []
    medians = {size: statistics.median(times) for size, times in spent.items()}
    print("  ".join(f"{size}: {1000 * one:.1f} ms" for size, one in medians.items()))
    print(f"chosen {chosen}: {medians[chosen] / min(medians.values()) - 1:+.1%} of the best")


if __name__ == "__main__":
    work = {"time": compare_with_a_run, "sizes": compare_with_every_size}[sys.argv[1] if len(sys.argv) > 1 else "time"]
    work(sys.argv[2] if len(sys.argv) > 2 else "quickstart", sys.argv[3:])
