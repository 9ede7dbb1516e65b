"""Seconds of the device, of the host, and how busy the device is."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from bench.gpu_day.day import DEVICE
from eco_fast.training.bench.timing import recorded
from eco_fast.training.profiling import CLOCK_TICK, Work, time_of

REPEATS = 20


def device_seconds(work: Work, repeats: int = REPEATS) -> float:
    """Median of one call between two events, behind one call for which libraries choose their code."""
    work()
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    for begin, end in events:
        begin.record()
        work()
        end.record()
    torch.cuda.synchronize()
    milliseconds: list[float] = [begin.elapsed_time(end) for begin, end in events]
    return max(statistics.median(milliseconds) / 1e3, CLOCK_TICK)


def graph_seconds(works: Sequence[Work], repeats: int = REPEATS) -> float:
    """Median of one of some pieces of work, launched together as one graph: no host between them.

    Each has inputs of its own; where these are more than the device's caches hold, each is read from its memory.
    """
    return device_seconds(recorded(works), repeats) / len(works)


def host_seconds(work: Work, repeats: int = 10) -> float:
    """Median of what it takes the host to launch it, with nothing in the device's queue."""
    seconds = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    torch.cuda.synchronize()
    return statistics.median(seconds)


def busy_share(work: Work, steps: int, trace: Path | None = None) -> float:
    """Share of the time of some steps in which a kernel or a copy is running; the profiler's own cost included."""
    activities = [torch.profiler.ProfilerActivity.CUDA]
    if trace is not None:  # for people, who want to see the host too
        activities.append(torch.profiler.ProfilerActivity.CPU)
    with torch.profiler.profile(activities=activities) as profiler:
        seconds = time_of(work, steps, DEVICE)
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in profiler.events() or ()
        if event.device_type.name == "CUDA" and not event.is_user_annotation
    )
    busy, reached = 0.0, 0.0  # microseconds
    for begin, end in spans:
        busy += max(end - max(begin, reached), 0)
        reached = max(reached, end)
    return busy / 1e6 / (seconds * steps)
