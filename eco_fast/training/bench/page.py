"""`eco-fast bench`: the command as a function, which keeps what it measures."""

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eco_fast.training.bench.alone import measure_case
from eco_fast.training.bench.cases import BenchCase, make_cases
from eco_fast.training.bench.figure import draw_bench
from eco_fast.training.bench.images import bench_images
from eco_fast.training.bench.results import RESULTS, read_bench
from eco_fast.training.bench.tables import show_changes, tables_of
from eco_fast.training.run_folder import environment
from eco_fast.utils.device import why_not_compile
from eco_fast.utils.files import make_folder, write_json
from eco_fast.utils.progress import ProgressLine

FIGURE = "bench.png"


def bench(
    recipes: Sequence[str],
    overrides: Mapping[str, Any],
    *,
    across: Sequence[str] = (),
    memory_formats: Sequence[str] = (),
    rounds: int = 5,
    out: Path | None = None,
    earlier: Path | None = None,
) -> dict[str, Any]:
    """Time recipes, say how fast they train, and keep it.

    Args:
        recipes: names or files; empty: the suite.
        overrides: values of keys for all of them.
        across: `key=[value, ...]`: each recipe with each of these values.
        memory_formats: each recipe in each of these; empty: the network's own.
        rounds: at least 1.
        out: folder of the results, in which there are none yet; None: below runs/, named after the time.
        earlier: the results of another day, to compare with.

    Returns:
        What the file holds.

    Raises:
        ValueError: bad input, something that this machine cannot do, or no case could be timed; one sentence.
    """
    if rounds < 1:
        raise ValueError(f"--rounds: expected at least 1, got {rounds}")
    then = None if earlier is None else read_bench(earlier)
    cases = make_cases(recipes, overrides, across, memory_formats)
    folder = out or Path("runs") / time.strftime("bench-%Y-%m-%d-%H%M%S")
    if (folder / RESULTS).exists():
        raise ValueError(f"{folder / RESULTS}: exists already; name another folder with --out")
    for reason in {why_not_compile(case.device) for case in cases if case.recipe.train.compile} - {None}:
        print(f"not compiled: {reason}; nor is a training here", flush=True)
    results = _measure_all(cases, folder, rounds)
    failed = [case for case in results["cases"] if "failed" in case]
    if len(failed) == len(cases):
        raise ValueError(f"{failed[0]['name']}: {failed[0]['failed']}")
    for table in tables_of(results):
        table.show()
    if then is not None:
        show_changes(then, results, str(earlier))
    draw_bench(folder / FIGURE, results, then)
    print(f"in {folder}: {RESULTS}, {FIGURE}")
    return results


def _measure_all(cases: Sequence[BenchCase], folder: Path, rounds: int) -> dict[str, Any]:
    """What the file holds, which is written after each case."""
    results: dict[str, Any] = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "machine": environment(cases[0].recipe),
        "cases": [],
    }
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".work-") as work:  # on a run's disk, which /tmp may not be
        images = Path(work, "images")
        for case in cases:
            bench_images(case.recipe, images)
        write_json(folder / RESULTS, results)  # a folder that cannot be written shows before the first case
        for number, case in enumerate(cases, 1):
            made = _measure(case, f"{number}/{len(cases)}", images, Path(work, f"run-{number}"), rounds)
            results["cases"].append(made)
            write_json(folder / RESULTS, results)
    return results


def _measure(case: BenchCase, place: str, images: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """Time a case, and say how that ended."""
    parts = [f"{place} {case.name}", "setting up"]

    def note(done: int) -> None:
        parts[1] = f"round {done} of {rounds}"

    with ProgressLine(lambda: parts) as line:
        made = measure_case(case, images, folder, rounds, note)
        said = made.get("failed") or f"{made['figures']['ms'].median:.4g} ms a step"
        line.say(f"{place} {case.name}: {said}")
    return made
