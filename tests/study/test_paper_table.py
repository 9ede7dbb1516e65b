"""The table of finished runs: its numbers by hand, its files against each other, and what may stand in one table."""

import csv
import json
import math
import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.config.paper import IDLE, PLACES, nearest
from eco_fast.data.images import Pixels, write_png
from eco_fast.evaluation.evaluate import evaluate
from eco_fast.training.pipeline import run_recipe

RECIPE = "edsr_baseline_x2_l2_eco"
SETS = ['data.test=["data/Set5/HR", "data/BSD100"]']
Scores = Mapping[str, tuple[float | None, float]]
Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a run's folder: `make("a", ["seed=1"], Set5=(38.0, 0.96))`; without scores, that of an unfinished run."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, overrides: list[str], recipe: str = RECIPE, baseline: Scores | None = None, **sets: Any) -> Path:
        folder = Path(name)
        folder.mkdir()
        (folder / "config.toml").write_text(config.dump(config.load(recipe, [*SETS, *overrides])), encoding="utf-8")
        if sets:
            networks = {"student": sets, "baseline": baseline or {}}
            by_set = {
                one: {"bicubic": {"psnr_y": 30.0, "ssim_y": 0.9}}
                | {
                    network: dict(zip(("psnr_y", "ssim_y"), scores[one], strict=True))
                    for network, scores in networks.items()
                    if one in scores
                }
                for one in sets
            }
            (folder / "summary.json").write_text(json.dumps({"sets": by_set}), encoding="utf-8")
        return folder

    return run


def table(*runs: Path) -> list[dict[str, str]]:
    """The lines of the CSV that the command writes."""
    assert main(["table", *map(str, runs), "--out", "out"]) == 0
    with Path("out/table.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_run_scores_every_set_of_its_test_images(
    photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, place in {"Set5/HR/a": 60, "Set5/HR/b": 90, "BSD100/c": 150}.items():
        write_png(Path(f"data/{name}.png"), photo[place : place + 40, place : place + 48])
    recipe = config.load(
        RECIPE,
        [
            *SETS,
            'data.train=["data"]',
            "data.patch=8",
            "model.features=8",
            "model.blocks=1",
            "teacher.steps=1",
            "train.steps=2",
            "train.batch_size=2",
            "train.baseline=true",
            "train.compile=false",
            "train.device=cpu",
        ],
    )
    run_recipe(recipe, Path("run"))
    sets = json.loads(Path("run/summary.json").read_text(encoding="utf-8"))["sets"]
    networks = {"teacher": "run/teacher", "student": "run", "baseline": "run/baseline"}
    assert {name: [*scores] for name, scores in sets.items()} == {
        name: ["bicubic", *networks] for name in ("Set5", "BSD100")
    }
    for network, folder in networks.items():
        for name, source in {"Set5": "data/Set5/HR", "BSD100": "data/BSD100"}.items():
            last = Path(folder) / "checkpoints" / "last.safetensors"
            scores = evaluate(last, [source], 2, device="cpu")[source].values()
            assert sets[name][network]["psnr_y"] == pytest.approx(statistics.fmean(one.psnr_y for one in scores))
    rows = table(Path("run"))
    assert [row["method"] for row in rows] == ["vanilla (baseline)", "eco"]
    assert [row["Set5 PSNR-Y"] for row in rows] == [
        repr(sets["Set5"][one]["psnr_y"]) for one in ("baseline", "student")
    ]
    assert {row["differs"] for row in rows} == {"no shipped recipe has this scale, network and objective"}


def test_seeds_of_one_recipe_are_one_row_with_the_interval_of_student(make: Make) -> None:
    """By hand: 38, 38.1 and 38.5 have a mean of 38.2, s = sqrt(0.07); t for 97.5 % and 2 degrees is 4.302653."""
    runs = [make(f"r{seed}", [f"seed={seed}"], Set5=(38 + extra, 0.96)) for seed, extra in enumerate((0, 0.1, 0.5))]
    row, paper = table(*runs)
    assert (row["source"], row["seeds"]) == ("3 seeds: r0, r1, r2", "3")
    assert float(row["Set5 PSNR-Y"]) == pytest.approx(38.2, abs=1e-9)
    assert float(row["Set5 PSNR-Y ±"]) == pytest.approx(4.302653 * math.sqrt(0.07) / math.sqrt(3), abs=1e-6)
    assert float(row["Set5 SSIM-Y"]) == pytest.approx(0.96)
    assert row["BSD100 PSNR-Y"] == ""  # which they were not scored on
    assert paper["source"] == "paper: Table 2 (b), ECO"


def test_what_else_differs_makes_rows_of_their_own(make: Make) -> None:
    runs = [
        make("a", ["teacher.checkpoint=one.pt"], Set5=(38.0, 0.96)),
        make("b", ["teacher.checkpoint=two.pt", "seed=1"], Set5=(39.0, 0.96)),
        make("c", ["objective.name=vanilla", "seed=1"], Set5=(37.0, 0.96)),
    ]
    assert [(row["method"], row["source"], row["Set5 PSNR-Y"]) for row in table(*runs)] == [
        ("vanilla", "c", "37.0"),
        ("vanilla", "paper: Table 2 (b), vanilla", "37.89"),
        ("eco", "a", "38.0"),
        ("eco", "b", "39.0"),
        ("eco", "paper: Table 2 (b), ECO", "37.94"),
    ]


def test_a_run_that_is_not_finished_is_missing_and_in_no_mean(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    scored = [make(f"r{seed}", [f"seed={seed}"], Set5=(38.0 + seed, 0.96)) for seed in (0, 1)]
    rows = table(*scored, make("late", ["seed=2"]), make("other", ["objective.name=kd"]))
    assert [(row["source"], row["seeds"], row["Set5 PSNR-Y"]) for row in rows] == [
        ("other, not finished", "0", "missing"),
        ("2 of 3 seeds: r0, r1", "2", "38.5"),
        ("late, not finished", "0", "missing"),
        ("paper: Table 2 (b), ECO", "", "37.94"),
    ]
    assert capsys.readouterr().out.count("missing") == 4  # two sets each


def test_the_columns_have_the_papers_order_and_its_numbers(make: Make) -> None:
    others = {"Manga109": (39.0, 0.97), "mine": (30.0, 0.8), "Set14": (34.0, 0.92), "Set5": (38.0, 0.96)}
    test = f"data.test={json.dumps([f'data/{name}/HR' for name in others])}"
    row, paper = table(make("a", [test], recipe="edsr_x2_eco", **others))
    assert [key for key in row if key.endswith("PSNR-Y")] == [
        f"{name} PSNR-Y" for name in ("Set5", "Set14", "Manga109", "mine")
    ]
    assert [
        paper[f"{name} {measure}"] for name in ("Set5", "Set14", "Manga109", "mine") for measure in ("PSNR-Y",)
    ] == [
        "38.29",
        "34.07",
        "39.26",
        "",
    ]
    assert (paper["Set14 SSIM-Y"], row["recipe"], row["differs"]) == ("0.921", "edsr_x2_eco", "")
    assert row["model"] == "edsr features=256 blocks=32 residual_scale=0.1"


def test_what_differs_from_the_nearest_recipe_is_said_and_places_are_not(make: Make) -> None:
    places = [
        'data.train=["elsewhere"]',
        "data.store=there",
        "train.device=cuda",
        "train.precision=bf16",
        "seed=7",
        "teacher.checkpoint=given.pt",
        "train.log_every=5",
    ]
    row, _ = table(make("a", [*places, "train.steps=70", "optimizer.betas=[0.9, 0.99]"], Set5=(38.0, 0.96)))
    assert (row["recipe"], row["differs"]) == (RECIPE, "optimizer.betas=(0.9, 0.99), train.steps=70")
    vanilla = config.load("edsr_baseline_x2_l2_vanilla", ["teacher.steps=3", "objective.alpha=linear"])
    found = nearest(vanilla)
    assert found is not None
    assert (found.name, found.differing) == ("edsr_baseline_x2_l2_vanilla", [])  # vanilla training has neither


def test_markdown_and_csv_and_the_screen_hold_the_same(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    baseline = {"Set5": (37.123, 0.95), "BSD100": (None, 1.0)}
    scores = {"Set5": (38.456, 0.96129), "BSD100": (32.0, 0.9)}
    runs = [
        make("a|b", ["train.baseline=true"], baseline=baseline, **scores),
        make("[b]", ["seed=1", "train.baseline=true"], baseline=baseline, **scores),
        make("c", ["seed=2"]),
    ]
    rows = table(*runs)
    said = capsys.readouterr().out
    lines = Path("out/table.md").read_text(encoding="utf-8").splitlines()
    split = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[2:]]
    cells = [[cell.strip().replace("\\|", "|") for cell in line] for line in split]
    assert {len(line) for line in (cells[0], *cells[2:])} == {7}
    assert len(cells) - 2 == len(rows) == 5
    for row, line in zip(rows, cells[2:], strict=True):
        assert line[:4] == [f"x{row['scale']}", row["model"], row["method"], row["source"]]
        assert all(cell in said for cell in line[:6])
        for name, cell in zip(("Set5", "BSD100"), line[4:6], strict=True):
            values = [row[f"{name} {key}"] for key in ("PSNR-Y", "PSNR-Y ±", "SSIM-Y", "SSIM-Y ±")]
            if values[0] == "missing":
                assert cell == "missing"
                continue
            parts = [part.partition(" ± ") for part in cell.split(" / ")] if cell else [("", "", "")] * 2
            shown = [number for mean, _, width in parts for number in (mean, width)]
            for number, value, places in zip(shown, values, (2, 2, 4, 4), strict=True):
                assert number == (f"{float(value):.{places}f}" if value else "")
    assert rows[0]["BSD100 PSNR-Y"] == "inf"


def test_runs_of_a_comparison_are_runs_too(make: Make) -> None:
    for seed in (2, 3):
        folder = make(f"seed={seed}", [f"seed={seed}"])
        scores = {name: {"psnr_y": 38.0 + seed, "ssim_y": 0.9} for name in ("validation", "Set5", "BSD100")}
        (folder / "scores.json").write_text(json.dumps({"last": scores, "best": {}}), encoding="utf-8")
    row, _ = table(Path("seed=2"), Path("seed=3"))
    assert (row["Set5 PSNR-Y"], row["seeds"]) == ("40.5", "2")
    assert not any("validation" in key for key in row)  # it chose the checkpoints, and is no test


def test_nothing_is_written_without_a_folder_for_it(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["table", str(make("a", [], Set5=(38.456, 0.96129)))]) == 0
    assert "38.46 / 0.9613" in capsys.readouterr().out
    assert sorted(path.name for path in Path().iterdir()) == ["a"]


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (["train.batch_size=2"], "a and b: runs of one table must share their recipe, but train.batch_size differs"),
        (
            ["data.noise_sigma=10"],
            "a and b: runs of one table must share their recipe, but data.noise_sigma differs",
        ),
        ([], "a and b: the same recipe and seed 0 would count twice"),
        (["train.device=cuda"], "a and b: the same recipe and seed 0 would count twice"),
        (["train.device=cuda", "seed=1"], ""),
        (["train.device=cuda", "objective.alpha=linear"], ""),
        (["model.blocks=3", "train.batch_size=2"], ""),  # another network has a recipe of its own
        (["objective.alpha=linear", "teacher.steps=2", 'data.train=["x"]', "seed=1"], ""),
    ],
)
def test_only_runs_that_compare_stand_in_one_table(
    second: list[str], message: str, make: Make, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [make("a", [], Set5=(38.0, 0.96)), make("b", second, Set5=(38.0, 0.96))]
    assert main(["table", *map(str, runs)]) == (2 if message else 0)
    assert message in capsys.readouterr().err


def test_keys_that_may_differ_are_keys_of_a_recipe() -> None:
    """A key that was renamed would count as a difference between runs of one recipe."""
    recipe = config.Config().model_dump()
    values = {key: recipe[key] for key in recipe if not isinstance(recipe[key], dict)}
    values |= {f"{name}.{key}": value for name in recipe.keys() - values for key, value in recipe[name].items()}
    assert values.keys() >= IDLE | PLACES


def test_sets_of_one_name_with_different_images_are_refused(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [make(name, [f"seed={seed}"], Set5=(38.0, 0.96)) for seed, name in enumerate("ab")]
    summary = runs[1] / "summary.json"
    summary.write_text(summary.read_text().replace("30.0", "30.1"), encoding="utf-8")
    assert main(["table", *map(str, runs)]) == 2
    assert "a and b: their Set5 holds different images" in capsys.readouterr().err


def test_a_folder_that_has_no_results_is_named(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    run = make("a", [], Set5=(38.0, 0.96))
    Path("empty").mkdir()
    for content, folder, message in (
        ("", "empty", "empty: expected a run folder, but it holds no config.toml"),
        ('{"student": {}}', "a", "a/summary.json: has no scores by set; `eco-fast train --run a --resume`"),
        ("{", "a", "a/summary.json: "),
    ):
        (run / "summary.json").write_text(content, encoding="utf-8")
        assert main(["table", folder]) == 2
        assert message in capsys.readouterr().err
    (make("b", ["data.test=[]"]) / "summary.json").write_text("{}", encoding="utf-8")
    assert main(["table", "b"]) == 2
    assert "b: its recipe names no images to score (data.test)" in capsys.readouterr().err
    make("c", ["objective.name=residual"])
    assert main(["table", "c"]) == 2
    assert "c: its objective is residual, whose network makes no SR images; leave it out" in capsys.readouterr().err
