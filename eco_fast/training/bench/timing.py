"""Seconds of work, and what several rounds of them say."""

import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from eco_fast.training.profiling import Work, time_of


class Spread(NamedTuple):
    """A figure over the rounds; half of them lie between the quartiles."""

    median: float
    lower: float
    upper: float


def spread(values: Sequence[float]) -> Spread:
    """Of one value or more."""
    if len(values) == 1:
        return Spread(*values, *values, *values)
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return Spread(median, lower, upper)


def ratios(first: Sequence[float], second: Sequence[float]) -> list[float]:
    """Of each round."""
    return [one / other for one, other in zip(first, second, strict=True)]


def alternately(ways: Mapping[str, Work], steps: int, device: str) -> dict[str, float]:
    """Seconds per step of each way. They take turns step by step, so that a drifting clock speed hits all the same.

    Each does an untimed step first, which brings back the memory that the others have evicted.
    """
    for work in ways.values():
        time_of(work, 1, device)
    totals = dict.fromkeys(ways, 0.0)
    for _ in range(steps):
        for way, work in ways.items():
            totals[way] += time_of(work, 1, device) / steps
    return totals


def recorded(works: Sequence[Work]) -> Work:
    """On a GPU: what launches some pieces of work as one CUDA graph."""
    torch.cuda.synchronize()
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for _ in range(3):  # compilation, the libraries' choice of code
            for work in works:
                work()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for work in works:
            work()
    return graph.replay
