"""The page of a run, against the run's own files; nothing on it is foreign, and it harms no run."""

import base64
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from eco_fast import config
from eco_fast.data.images import Pixels, write_png
from eco_fast.evaluation.scoring import pairs_of, score_bicubic, score_network
from eco_fast.models import load_network
from eco_fast.training.crops import CROP, MAX_SAMPLES, Crop, read_crops, write_crops
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.report.charts import thinned
from eco_fast.training.report.elements import element, text_table
from eco_fast.training.report.run_report import write_run_report
from tests.helpers import complaint

ATTACK = """</script><script>throw 1</script><img src=x onerror="throw 2">'&amp; \N{SNOWMAN}"""
NAME = """a"><img src=x onerror=throw(3)>&'\udce9"""
"""Of an image, with a byte that is no character."""
SET = "<!--<script>"
"""Of images; within a script it would hide the end of it."""


class Page(HTMLParser):
    """What is on a page, by a parser of others."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.within: list[str] = []
        self.bytes = path.read_bytes()
        self.feed(self.bytes.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "img", "input"):
            self.within.append(tag)
        self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.within.pop() == tag, "every element ends where it should"

    def handle_data(self, data: str) -> None:
        if self.within:
            self.texts[self.within[-1]][-1] += data

    @property
    def table(self) -> list[str]:
        """The cells of all tables, in their order."""
        return re.findall(r"<t[hd][^>]*>([^<]*)</t[hd]>", self.bytes.decode())

    @property
    def data(self) -> Any:
        return json.loads(self.texts["script"][0])


@pytest.fixture(scope="module")
def run(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run whose names and texts attack the page, and some of whose steps were skipped."""
    folder = tmp_path_factory.mktemp("report")
    for index in range(2):
        write_png(folder / "hr" / f"{index}.png", photo[60 : 60 + 60, 120 + 50 * index : 170 + 50 * index])
    write_png(folder / "test" / f"{NAME}.png", photo[50:200, 100:260])
    write_png(folder / SET / "a.png", photo[50:90, 100:140])
    values: dict[str, Any] = {
        "description": ATTACK,
        "data": {"train": [str(folder / "hr")], "validation": [str(folder / "test")], "patch": 8},
        "model": {"features": 8, "blocks": 1},
        "teacher": {"steps": 4},
        "optimizer": {"learning_rate": 1e-3, "spike_factor": 0.97},
        "train": {"steps": 12, "batch_size": 2, "log_every": 2, "validate_every": 3, "baseline": True},
    }
    values["train"] |= {"compile": False, "device": "cpu"}
    values["data"]["monitor"] = [str(folder / SET)]
    made = folder / "<i>run &amp; more"
    run_recipe(config.validate(values, "test"), made)
    return made


@pytest.fixture(scope="module")
def page(run: Path) -> Page:
    return Page(run / "report.html")


# --- what it says ---


def test_everything_is_on_the_page_and_nothing_of_it_is_live(page: Page, run: Path) -> None:
    assert page.within == []
    assert sum(tag == "script" for tag, _ in page.elements) == 3, "the data, the charts and the crops"
    sources = [
        value
        for _, attributes in page.elements
        for name, value in attributes.items()
        if name in ("src", "href") or name.startswith("on")
    ]
    assert sources
    assert all((value or "").startswith("data:") for value in sources)
    assert page.texts["h1"] == [run.name]
    assert ATTACK in page.texts["p"]
    assert page.texts["h3"] == [f"test/{NAME}.png".replace("\udce9", "\\udce9")]
    assert (run / "config.toml").read_text(encoding="utf-8") in page.texts["pre"]
    assert "<" not in page.texts["script"][0]
    assert page.data["charts"][-1]["label"] == f"PSNR-Y of {SET} (dB)"
    assert b"http:" not in page.bytes.replace(b"http://www.w3.org/2000/svg", b"")
    assert b"https:" not in page.bytes


def test_the_scores_are_those_of_the_summary(page: Page, run: Path) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    for name in ("bicubic", "teacher", "baseline", "student"):
        cell = page.table[page.table.index(name) + 1]
        assert cell == f"{summary[name]['psnr_y']:.3f} / {summary[name]['ssim_y']:.4f}"
    assert any(f"{summary['student']['psnr_y']:.3f} dB" in text for text in page.texts["dd"])


def test_the_curves_are_the_rows(page: Page, run: Path) -> None:
    charts = {chart["label"]: chart["series"] for chart in page.data["charts"]}
    assert list(charts) == page.texts["figcaption"][: len(charts)]
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    wanted = [[row["step"], pytest.approx(row["psnr_y"], rel=1e-5)] for row in rows if "psnr_y" in row]
    (student,) = (one for one in charts["validation PSNR-Y (dB)"] if one["name"] == "student")
    assert student["points"] == wanted
    assert [point[0] for point in student["points"]] == [3, 6, 9, 12]
    assert [one["name"] for one in charts["training loss (grey levels)"]] == ["student", "baseline", "teacher"]


def test_the_crops_are_the_files_and_their_psnr_the_image_s(page: Page, run: Path) -> None:
    images = [attributes for tag, attributes in page.elements if tag == "img"]
    (crop,) = read_crops(run / "samples")
    assert [base64.b64decode((one["src"] or "").partition(",")[2]) for one in images] == [
        file.read_bytes() for file in crop.panels.values()
    ]
    (name,) = (run.parent / "test").iterdir()
    with Image.open(name) as image:
        hr = {crop.image: np.array(image)}
    network = load_network(run / "checkpoints" / "last.safetensors").eval()
    sr, bicubic = score_network(network, pairs_of(hr, 2)), score_bicubic(pairs_of(hr, 2), 2)
    assert crop.psnr_y == {"SR": sr[crop.image].psnr_y, "bicubic": bicubic[crop.image].psnr_y}
    labels = [f"{panel}, {crop.psnr_y[panel]:.2f} dB" for panel in ("bicubic", "SR")]
    assert [one["alt"] for one in images] == ["LR", *labels, "HR"]


def test_every_skipped_step_is_counted(page: Page, run: Path) -> None:
    begin = page.table.index("skipped") + 1
    cells = page.table[begin : page.table.index("", begin)]
    by_training: dict[str, int] = {}
    for name, _, count in zip(cells[::3], cells[1::3], cells[2::3], strict=True):
        by_training[name] = by_training.get(name, 0) + int(count)
    assert sum(by_training.values()) > 0
    for name, where in {"student": run, "baseline": run / "baseline", "teacher": run / "teacher"}.items():
        rows = [json.loads(line) for line in (where / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        assert by_training.get(name, 0) == max(row.get("skipped", 0) for row in rows)


def test_the_hashes_are_those_of_the_files(page: Page, run: Path) -> None:
    lines = [line for text in page.texts["pre"] for line in re.findall(r"^([0-9a-f]{64})  (.+)$", text, re.MULTILINE)]
    assert {name for _, name in lines} >= {"config.toml", "pinned.json", "baseline/checkpoints/last.safetensors"}
    for digest, name in lines:
        assert digest == hashlib.sha256((run / name).read_bytes()).hexdigest()


def test_the_paper_s_row_stands_beside_the_run(tmp_path: Path) -> None:
    recipe = config.load("edsr_baseline_x2_l2_eco", ["data.test=['data/Set5/HR', 'mine']", "train.steps=7"])
    (tmp_path / "config.toml").write_text(config.dump(recipe), encoding="utf-8")
    scores = {"psnr_y": 37.5, "ssim_y": 0.9512}
    summary = {"student": scores, "sets": {"Set5": {"student": scores}, "mine": {"student": scores}}}
    (tmp_path / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = Page(write_run_report(tmp_path))
    assert recipe.paper.set5 is not None
    psnr, ssim = recipe.paper.set5
    row = page.table.index(f"paper, {recipe.paper.row} (for the student)")
    assert page.table[row + 1 : row + 3] == [f"{psnr:.2f} / {ssim:.4f}", ""]
    assert any("it differs in train.steps = 7." in text for text in page.texts["p"])


def test_a_run_that_has_barely_begun_has_a_page(tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text(config.dump(config.load("quickstart")), encoding="utf-8")
    page = Page(write_run_report(tmp_path))
    assert any(text.startswith("not finished, 0 of ") for text in page.texts["dd"])
    assert page.data == {"charts": []}


# --- its parts ---


@pytest.mark.parametrize("text", ["<b>", "</b>", "&amp;", "&#39;", '"', "'", "<!--", "]]>", "a=b>", "", ATTACK])
def test_a_text_stays_a_text(text: str) -> None:
    found: list[Any] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append((tag, attrs))

        def handle_data(self, data: str) -> None:
            found.append(data)

    reader = Reader()
    reader.feed(element("b", text, title=text, hidden=True, class_=False))
    reader.close()
    assert found[0] == ("b", [("title", text), ("hidden", None)])
    assert "".join(found[1:]) == text


def test_long_cells_may_be_broken() -> None:
    whole = text_table(["a", "b"], [["x", 46 * "y"]], "letters")
    assert f'<th scope="row">x</th><td class="long">{46 * "y"}</td>' in whole


@given(st.lists(st.floats(-1e6, 1e6), max_size=300), st.integers(4, 60))
def test_few_points_keep_the_ends_and_the_extremes(values: list[float], limit: int) -> None:
    points = list(enumerate(values))
    few = thinned(points, limit)
    assert len(few) <= max(limit, 0)
    assert few == sorted(set(few))
    assert set(few) <= set(points)
    if points:
        assert few[0] == points[0]
        assert few[-1] == points[-1]
        assert {min(values), max(values)} <= {value for _, value in few}


def test_the_largest_page_is_below_3_mb(tmp_path: Path) -> None:
    """Of 600 000 steps, with three trainings, and the most crops, of noise, which no PNG makes smaller."""
    noise = np.random.default_rng(0).integers(0, 256, (4, CROP, CROP, 3), dtype=np.uint8)
    panels = dict(zip(("LR", "bicubic", "SR", "HR"), noise, strict=True))
    write_crops(tmp_path / "samples", [Crop(str(number), panels, {"SR": 30.0}) for number in range(MAX_SAMPLES)])
    for name in ("", "baseline", "teacher"):
        (tmp_path / name).mkdir(exist_ok=True)
        (tmp_path / name / "config.toml").write_text(config.dump(config.load("quickstart")), encoding="utf-8")
        rows = [
            {"step": step, "loss": step**0.37, "alpha": step**0.11, "learning_rate": step**-0.7, "psnr_y": step**0.1}
            for step in range(100, 600_000, 100)
        ]
        (tmp_path / name / "metrics.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    page = Page(write_run_report(tmp_path))
    assert 1_000_000 < len(page.bytes) < 3_000_000
    points = sum(len(series["points"]) for chart in page.data["charts"] for series in chart["series"])
    assert 25_000 < points <= 30_000
    assert any("drawn by 2500 points" in text for text in page.texts["p"])


# --- it harms nothing, and works anywhere ---


@pytest.fixture
def another(run: Path) -> Iterator[Path]:
    """The run without its page, which it gets again."""
    page = run / "report.html"
    kept = page.read_bytes()
    page.unlink()
    yield run
    page.write_bytes(kept)


def test_a_run_whose_page_cannot_be_written_ends_well(another: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (another / "report.html" / "in the way").mkdir(parents=True)
    summary = run_recipe(config.load(str(another / "config.toml")), another, resume=True)
    assert "student" in summary
    said = capsys.readouterr().out.splitlines()[-1]
    assert said.startswith("no report: ")
    assert "report.html" in said
    (another / "report.html" / "in the way").rmdir()
    (another / "report.html").rmdir()


@pytest.mark.slow
def test_the_command_works_without_git_a_terminal_a_gpu_or_a_locale(another: Path) -> None:
    before = sorted(path for path in another.rglob("*") if path.name != "report.html")
    environment = {"PATH": "/nowhere", "LC_ALL": "C", "PYTHONPATH": os.environ["PYTHONPATH"]}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "PYTHONUTF8": "0"}
    command = [sys.executable, "-m", "eco_fast", "report", str(another)]
    made = subprocess.run(command, env=environment, capture_output=True, stdin=subprocess.DEVNULL, check=True)
    assert made.stderr == b""
    assert made.stdout.decode().strip() == str(another / "report.html")
    assert Page(another / "report.html").texts["h1"] == [another.name]
    assert sorted(path for path in another.rglob("*") if path.name != "report.html") == before


def test_what_is_no_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "expected a run or a comparison" in complaint(capsys, "report", str(tmp_path))
    (tmp_path / "config.toml").write_text(config.dump(config.load("quickstart")), encoding="utf-8")
    (tmp_path / "summary.json").write_text("{", encoding="utf-8")
    assert "summary.json: damaged" in complaint(capsys, "report", str(tmp_path))
