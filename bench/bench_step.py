"""The whole training step against the bare network, the field's loop, and the machine's own peak, in one run.

    pytest bench/bench_step.py -s

It is what `eco-fast bench` times (`eco_fast/training/bench/`), in this process. `extra_info` and the last lines hold
the medians.
"""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from eco_fast.training.bench.cases import SUITE, make_cases
from eco_fast.training.bench.images import bench_images
from eco_fast.training.bench.turns import take_turns

ROUNDS = {"edsr_baseline_x2_eco": 7, "quickstart": 13}
PRINTED = (
    "ms",
    "whole_over_bare",
    "field_over_whole",
    "share_of_peak",
    "gflops_convolution",
    "gflops_matmul",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the images."""
    return tmp_path_factory.mktemp("images")


@pytest.mark.parametrize("name", ROUNDS)
def test_step(benchmark: BenchmarkFixture, name: str, folder: Path, tmp_path: Path) -> None:
    """All ways in turn."""
    case = dict(zip(SUITE, make_cases([], {}, [], []), strict=True))[name]
    with take_turns(case, bench_images(case.recipe, folder), tmp_path / "run") as turns:
        turns.round()
        turns.rounds.clear()  # of the warm-up
        benchmark.pedantic(turns.round, rounds=ROUNDS[name])
        figures = turns.result()["figures"]
    result = {key: figures[key].median for key in PRINTED}
    benchmark.extra_info.update(result)
    print(f"\n{case.name}\n" + "\n".join(f"{key}: {value:.3f}" for key, value in result.items()))
