"""Whole training steps: how long, how busy the device, how long the host, how much memory."""

import gc
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from multiprocessing import get_context
from pathlib import Path

import torch

from bench.gpu_day.day import DEVICE, Day
from bench.gpu_day.plan import RECIPES, STEPS, StepCase
from bench.gpu_day.timing import busy_share, host_seconds
from eco_fast.config import Config
from eco_fast.training.bench.images import bench_images
from eco_fast.training.bench.ways import bare, field, seconds_apart, start_apart, whole
from eco_fast.training.cost import estimate
from eco_fast.training.precision import choose_precision
from eco_fast.training.profiling import Work, forget_peak_memory, peak_memory, time_of
from eco_fast.utils.device import why_not_dali

WARM_UP = 6  # steps: compilation, the search for convolutions, the recording of the graph
COMPILATION = 25  # seconds that a new case may take before its first number


def measure_step(day: Day) -> None:
    """EDSR-baseline in every way."""
    _measure(day, STEPS, trace_of="compiled")


def measure_recipes(day: Day) -> None:
    """The other recipes."""
    _measure(day, RECIPES)


def _measure(day: Day, cases: tuple[StepCase, ...], trace_of: str = "") -> None:
    with tempfile.TemporaryDirectory() as folder:
        images = Path(folder) / "images"
        for place, case in enumerate(cases):
            name = " ".join(map(str, case.key.values()))
            if not day.has_time(name, COMPILATION):
                continue
            if case.loader == "dali" and (reason := why_not_dali(DEVICE)) is not None:
                day.skip(f"{name}: {reason}")
                continue
            trace = day.out / "trace.json" if case.way == trace_of else None
            try:
                row = _timed(day, case, images, Path(folder) / f"run-{place}", trace)
            except Exception as error:  # noqa: BLE001 - the other ways are to have their turn
                day.results["errors"][name] = f"{type(error).__name__}: {error}"[:2000]
                print(f"{name}: {day.results['errors'][name]}", flush=True)
                continue
            day.add("steps", **case.key, **row, predicted_ms=case.predicted_ms)


def _timed(day: Day, case: StepCase, images: Path, folder: Path, trace: Path | None) -> dict[str, float]:
    """The figures of a case."""
    if case.way == "field":
        return _field(day, case, images)
    gc.collect()  # a step and its graph hold each other
    torch.cuda.empty_cache()
    forget_peak_memory(DEVICE)
    with ExitStack() as stack:
        if case.way == "bare":
            recipe = day.recipe(case.recipe, f"train.batch_size={case.batch}", f"train.precision={case.precision}")
            work = bare(recipe, DEVICE)
        else:
            recipe = day.recipe(case.recipe, *case.overrides)
            stack.enter_context(_cudagraph_trees() if case.way == "reduce-overhead" else nullcontext())
            work = whole(recipe, bench_images(recipe, images), DEVICE, folder, stack).work
        began = time.perf_counter()
        for _ in range(WARM_UP):
            work()
        torch.cuda.synchronize()
        first = time.perf_counter() - began
        steps = _steps_in_a_second(work)
        seconds = time_of(work, steps, DEVICE)
        return {
            "ms": 1e3 * seconds,
            "patches_per_s": case.batch / seconds,
            "busy": busy_share(work, 5 if trace is None else 3, trace),
            "host_ms": 1e3 * host_seconds(work),
            "peak_gb": peak_memory(DEVICE),
            "estimated_gb": _estimated_gb(recipe),
            "first_steps_s": first,
        }


def _field(day: Day, case: StepCase, images: Path) -> dict[str, float]:
    """The usual loop, in a process of its own: nothing that the trainer sets for its process is part of it."""
    recipe = day.recipe(case.recipe, f"train.batch_size={case.batch}")
    arguments = (field, recipe, bench_images(recipe, images).folders, DEVICE)
    with ProcessPoolExecutor(1, get_context("spawn"), initializer=start_apart, initargs=arguments) as process:
        process.submit(seconds_apart, WARM_UP, DEVICE).result()
        seconds = process.submit(seconds_apart, 3 if day.rehearse else 100, DEVICE).result()
    return {"ms": 1e3 * seconds, "patches_per_s": case.batch / seconds}


def _steps_in_a_second(work: Work) -> int:
    """At least 10, at most 500."""
    return min(max(int(1 / time_of(work, 2, DEVICE)), 10), 500)


def _cudagraph_trees() -> AbstractContextManager[None]:
    """Torch's own graphs, one for the forward and one for the backward pass."""
    patch: AbstractContextManager[None] = torch._inductor.config.patch({"triton.cudagraphs": True})  # noqa: SLF001
    return patch


def _estimated_gb(recipe: Config) -> float:
    """What `--dry-run` says that the step takes."""
    return estimate(recipe, DEVICE, choose_precision(recipe.train, DEVICE)).memory / 1e9
