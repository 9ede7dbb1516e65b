"""A case, timed turn by turn."""

import multiprocessing
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch

from eco_fast.models import build
from eco_fast.training.bench.cases import BenchCase
from eco_fast.training.bench.images import BenchImages
from eco_fast.training.bench.results import Round, figures_of
from eco_fast.training.bench.timing import alternately
from eco_fast.training.bench.ways import (
    WholeStep,
    bare,
    field,
    in_memory_format,
    seconds_apart,
    start_apart,
    step_parts,
    whole,
)
from eco_fast.training.loop import explain_compiler
from eco_fast.training.memory import explain_oom
from eco_fast.training.precision import choose_precision
from eco_fast.training.profiling import (
    Work,
    convolution,
    forget_peak_memory,
    matmul,
    peak_memory,
    time_of,
    training_flops,
)
from eco_fast.utils.device import pick_device

WARM_UP = 6  # steps: compilation, the search for convolutions, the recording of a GPU's graph
LONG = 0.25  # seconds of a step after which two are warm-up enough
ROUND = 0.6  # seconds that the steps of a round take, if they are short
MOST_STEPS = 200
SETTLE = 1.5  # seconds in which the DataLoader's workers fill their queue, so that they do not disturb what comes next
PEAK_CALLS = {"convolution": 4, "matmul": 1}
"""Before a round's steps, and as many behind them."""


class Turns:
    """All ways of a case, ready to take turns; made by `take_turns`.

    Args:
        case: what is timed.
        step: its whole step.
        alone: the bare network's.
        apart: the process of the field's loop.
        facts: what is known of the case before the rounds.
    """

    def __init__(
        self, case: BenchCase, step: WholeStep, alone: Work, apart: ProcessPoolExecutor, facts: dict[str, Any]
    ) -> None:
        self.case, self.device, self.facts = case, case.device, facts
        self.rounds: list[Round] = []
        self._step, self._ways, self._apart = step, {"whole": step.work, "bare": alone}, apart
        self._steps = steps_in_a_round(time_of(step.work, 2, self.device))
        dtype = choose_precision(case.recipe.train, self.device).dtype or torch.float32
        samples, side = (512, 8192) if self.device.startswith("cuda") else (16, 2048)  # enough to fill the device
        self._peaks = {
            "convolution": convolution(samples, self.device, dtype),
            "matmul": matmul(side, self.device, dtype),
        }

    def round(self) -> None:
        """Time all ways, one after the other."""
        peaks = [self._peak_seconds()]
        in_turn = alternately(self._ways, self._steps, self.device)
        loader, watch = self._step.loader, self._step.watch
        watch.seconds()  # of the steps before
        waited = loader.waited
        seconds = time_of(self._step.work, self._steps, self.device)
        waited = loader.waited - waited
        stages = {stage: spent / self._steps for stage, spent in watch.seconds().items()}
        apart = self._field_seconds()
        peaks.append(self._peak_seconds())
        rates = {way: 2 * flops / sum(one[way] for one in peaks) for way, (_, flops) in self._peaks.items()}
        self.rounds.append(
            Round(
                whole=seconds,
                whole_in_turn=in_turn["whole"],
                bare_in_turn=in_turn["bare"],
                field=apart,
                convolution=rates["convolution"],
                matmul=rates["matmul"],
                waiting=waited / (seconds * self._steps),
                parts=step_parts(stages),
            )
        )

    def result(self) -> dict[str, Any]:
        """All that is kept of the rounds, as JSON has it."""
        recipe = self.case.recipe
        return {
            "name": self.case.name,
            **self.facts,
            "steps_in_a_round": self._steps,
            "figures": figures_of(self.rounds, self.facts["flops"], recipe.train.batch_size),
            "rounds": [one._asdict() for one in self.rounds],
        }

    def _peak_seconds(self) -> dict[str, float]:
        return {way: time_of(work, PEAK_CALLS[way], self.device) for way, (work, _) in self._peaks.items()}

    def _field_seconds(self) -> float | None:
        """None from the time on when the loop does not fit into the memory beside the others."""
        if "field" in self.facts:
            return None
        try:
            seconds = self._apart.submit(seconds_apart, self._steps, self.device).result()
        except (BrokenProcessPool, MemoryError, torch.OutOfMemoryError) as error:
            self.facts["field"] = f"the field's loop has ended ({type(error).__name__}; out of memory?)"
            return None
        time.sleep(SETTLE)
        return seconds


@contextmanager
def take_turns(case: BenchCase, images: BenchImages, folder: Path) -> Iterator[Turns]:
    """Set all ways of a case up.

    Args:
        case: what is to be timed.
        images: made for its recipe.
        folder: for what a training writes; new.

    Raises:
        ValueError: out of memory, or something cannot be compiled; says what to do.
    """
    recipe, device = case.recipe, pick_device(case.device)  # a GPU: this process's from here on
    with (
        explain_oom(recipe.train),
        explain_compiler(),
        in_memory_format(recipe, case.memory_format),
        ExitStack() as stack,
    ):
        forget_peak_memory(device)
        step = whole(recipe, images, device, folder, stack)  # resets the compiler: comes first
        began = time.perf_counter()
        seconds = time_of(step.work, 1, device)
        for _ in range(WARM_UP - 1):
            seconds = time_of(step.work, 1, device)
            if seconds > LONG and not device.startswith("cuda"):
                break
        first, memory = time.perf_counter() - began, peak_memory(device)
        alone = bare(recipe, device, step.micro_batches)
        time_of(alone, 2, device)
        spawned = multiprocessing.get_context("spawn")
        begin = (field, recipe, images.folders, device)
        apart = stack.enter_context(ProcessPoolExecutor(1, spawned, initializer=start_apart, initargs=begin))
        facts = {
            "device": device,
            "precision": choose_precision(recipe.train, device).name,
            "batch_size": recipe.train.batch_size,
            "micro_batches": len(step.micro_batches),
            "loader": type(step.loader).__name__,
            "flops": training_flops(build(recipe.model, recipe.scale), recipe.data.patch),
            "memory_gb": memory,
            "first_steps_seconds": first,
        }
        yield Turns(case, step, alone, apart, facts)


def steps_in_a_round(seconds: float) -> int:
    """Of a step that takes so long."""
    return min(max(round(ROUND / seconds), 1), MOST_STEPS)
