"""Some cells of the matrix that `python -m bench.soak_faults` runs whole."""

from pathlib import Path

import pytest

from tests.faults.cells import CELLS, Cell, meet, prepare
from tests.faults.injection import PLACES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare(tmp_path_factory.mktemp("faults"))


@pytest.mark.parametrize(
    "cell",
    [
        Cell("killed", "checkpoint", 2),
        Cell("stopped", "reduce", 2),
        Cell("cut", "backward", 4),
        Cell("NaN", "update", 2),
        Cell("full", "validation", 2),
        Cell("corrupt", "centroids", 2),
        Cell("slow", "loading", 2),
    ],
    ids=str,
)
def test_a_fault_is_named_and_the_run_goes_on_with_other_ranks(cell: Cell, prepared: Path, tmp_path: Path) -> None:
    meet(cell, prepared, tmp_path / "met")


def test_the_matrix_is_whole() -> None:
    assert len({(cell.fault, cell.place, cell.world) for cell in CELLS}) == 7 * 9 * 2
    assert len(PLACES) == 9
    assert sum(bool(cell.impossible) for cell in CELLS) == 2 * (4 + 5)
