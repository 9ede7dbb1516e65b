"""The GPU day without a GPU: its clock and its results, and the page that is made of them."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.gpu_day import day as gpu_day
from bench.gpu_day.day import Day, Section
from bench.gpu_day.page import UNKNOWN, page
from bench.gpu_day.plan import OPS, RECIPES, STEPS
from bench.gpu_day.suites import read_log
from tests.helpers import HANGS

PAGE = Path(__file__).parents[1] / "docs" / "gpu.md"
FACTS = {"date": "2030-01-01", "gpu": "NVIDIA H100 80GB HBM3", "driver": "1", "torch": "2", "commit": "c0ffee"}


def results(**more: Any) -> dict[str, Any]:
    return {"facts": FACTS, "tests": {}, "checks": [], "errors": {}, "skipped": [], **more}


def written(folder: Path, values: dict[str, Any]) -> Path:
    path = folder / "results.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def row_of(text: str, *cells: str) -> list[str]:
    """The cells of the one line of a table that begins with some."""
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {' | '.join(cells)} |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_page_in_docs_is_the_one_without_results() -> None:
    """`python -m bench.gpu_day --page > docs/gpu.md` makes it."""
    assert PAGE.read_text(encoding="utf-8") == page(None)


def test_a_measurement_stands_beside_its_prediction(tmp_path: Path) -> None:
    steps = [{**STEPS[0].key, "ms": 1.234567, "host_ms": 0.01, "patches_per_s": 12345.6}]
    ops = [{**OPS[0].key, "us": 9.87}]
    text = page(written(tmp_path, results(steps=steps, ops=ops, ceilings={"copy_gb_per_s": 2999.9})))
    row = row_of(text, "edsr_baseline_x2_eco", "16", "graph", "device", "bf16")
    assert row[5:] == [STEPS[0].predicted_ms, "1.23", STEPS[0].predicted_host_ms, "0.01", "12 346", UNKNOWN, UNKNOWN]
    assert row_of(text, "EDSR-baseline x2", "16")[5:11] == [
        "0.43 / 2.1",
        "1.23",
        "1.96 / 6.4",
        UNKNOWN,
        "2.3 / 7.8",
        UNKNOWN,
    ]
    assert "9.87" in row_of(text, "downsample_blend", "2", "16", "fp32", "padded")
    assert row_of(text, "copy_gb_per_s")[-1] == "3 000"
    assert text.count(UNKNOWN) == page(None).count(UNKNOWN) - 6


def test_what_failed_is_on_the_page(tmp_path: Path) -> None:
    tests = {"kernels": {"passed": 3, "skipped": 0, "failed": ["a::b"]}}
    checks = [{"name": "psnr", "ok": False}, {"name": "driver", "ok": True}]
    text = page(written(tmp_path, results(tests=tests, checks=checks, errors={"step": "..."}, skipped=["options"])))
    assert "3 tests passed. Failed: a::b, psnr, section step. No time for: options." in text


def test_a_rehearsal_makes_no_page(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a rehearsal's values mean nothing"):
        page(written(tmp_path, results(rehearsal=True)))


def test_no_two_cases_are_the_same() -> None:
    for cases in ((*STEPS, *RECIPES), OPS):
        keys = [tuple(case.key.items()) for case in cases]
        assert len(set(keys)) == len(keys)


@pytest.fixture
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_day, "pick_device", lambda _: None)
    monkeypatch.setattr("torch.cuda.init", lambda: None)


@pytest.mark.usefixtures("_no_gpu")
def test_a_section_that_raises_leaves_the_others_their_turn(tmp_path: Path) -> None:
    day = Day(tmp_path, time.monotonic() + 10_000, rehearse=False)

    def fail(day: Day) -> None:
        day.add("steps", ms=1.0)
        raise RuntimeError("no such kernel")

    day.run(Section("bad", 1000, fail))
    day.run(Section("good", 1000, lambda day: day.check("half", 0.5, 0, 1)))
    day.run(Section("long", 30_000, lambda _: pytest.fail("there is no time for it")))
    saved = json.loads((tmp_path / "gpu_day.json").read_text(encoding="utf-8"))
    assert saved["steps"] == [{"ms": 1.0}]
    assert "no such kernel" in saved["errors"]["bad"]
    assert saved["checks"] == [{"name": "half", "ok": True, "value": 0.5, "limit": [0, 1]}]
    assert saved["skipped"] == ["long"]
    assert saved["seconds"].keys() == {"bad", "good"}


@pytest.mark.usefixtures("_no_gpu")
def test_a_section_is_given_up_in_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_day, "OVERTIME", 0.01)
    day = Day(tmp_path, time.monotonic() + 10_000, rehearse=False)
    day.run(Section("endless", 1, lambda _: time.sleep(HANGS)))
    assert "TimeoutError" in day.results["errors"]["endless"]


@pytest.mark.usefixtures("_no_gpu")
def test_a_second_process_goes_on_with_the_results(tmp_path: Path) -> None:
    Day(tmp_path, 0, rehearse=False).add("ops", us=1.0)
    Day(tmp_path, 0, rehearse=False).add("ops", us=2.0)
    assert [row["us"] for row in json.loads((tmp_path / "gpu_day.json").read_text(encoding="utf-8"))["ops"]] == [
        1.0,
        2.0,
    ]


ALL_OUTCOMES = """
import pytest

@pytest.fixture
def broken(): raise OSError

def test_passes(): pass
def test_skips(): pytest.skip("why - so")
@pytest.mark.parametrize("x", ["a b"])
def test_fails(x): assert not x
def test_breaks(broken): pass
"""


def test_what_pytest_says_is_read(tmp_path: Path) -> None:
    """Also of tests that were ended halfway, or never began."""
    (tmp_path / "test_all.py").write_text(ALL_OUTCOMES, encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-n", "1", "test_all.py"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    failed = ["test_all.py::test_fails[a b]", "test_all.py::test_breaks"]
    assert read_log(said) == {"passed": 1, "skipped": 1, "failed": failed}
    assert read_log(said[: said.index("test_breaks")]) == {"passed": 1, "skipped": 1, "failed": failed[:1]}
    (tmp_path / "test_all.py").write_text("import nothing_of_this_name", encoding="utf-8")
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout
    assert read_log(said) == {"passed": 0, "skipped": 0, "failed": ["test_all.py"]}
    assert read_log("Killed") == {"passed": 0, "skipped": 0, "failed": ["Killed"]}
