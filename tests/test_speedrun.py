"""The speedrun: what it trains is what the trainer trains, what it counts, and the row that it writes."""

import json
import math
import shutil
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest

from bench import speedrun
from bench.speedrun import TRACKS, Points, entrants, record_cells, share_of, standings, with_row
from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.images import Pixels, write_png
from eco_fast.evaluation.benchmarks import read_images
from eco_fast.training.loop import train_network
from eco_fast.training.run_folder import RunFolder, read_rows
from eco_fast.training.training_data import load_teacher, obtain_centroids, open_images
from eco_fast.training.validation import ValidationSets, validation_scores

BASELINE: list[Points] = [[(10, 4.0, 30.0), (20, 8.0, 31.0)], [(10, 5.0, 30.5), (20, 10.0, 33.0)]]
ATTEMPT: list[Points] = [[(5, 1.0, 31.9), (10, 2.0, 32.0)], [(5, 2.0, 32.5), (10, 4.0, 32.4)]]
LOG = {
    "preparation": {"teacher": 5.0, "centroids": 1.0},
    "starts": [{"hardware": "a machine", "commit": "0123456789abcdef"}],
}


def test_the_target_is_the_mean_of_the_baselines_ends_and_the_first_validation_at_it_counts() -> None:
    target, found = standings({"baseline": BASELINE, "attempt": ATTEMPT})
    assert target == 32.0
    assert found["attempt"].steps == [10, 5]
    assert found["attempt"].seconds == [2.0, 2.0]
    assert found["baseline"].steps == [math.inf, 20], "one of its own seeds ends below"
    assert share_of(found["attempt"], found["baseline"]) == pytest.approx((2 / 8 + 2 / 10) / 2)
    assert share_of(found["attempt"], found["baseline"], before=6.0) == pytest.approx((8 / 8 + 8 / 10) / 2)


def test_a_record_is_a_row_of_its_table() -> None:
    cells = record_cells({"baseline": BASELINE, "attempt": ATTEMPT}, LOG, "me", "a | b", "speedrun-1.json")
    page = (speedrun.DOCS / "records.md").read_text(encoding="utf-8")
    for track in TRACKS:
        made = with_row(page, track, cells)
        lines = made.split("\n")
        (place,) = [number for number, line in enumerate(lines) if "a \\| b" in line]
        assert lines[:place] + lines[place + 1 :] == page.split("\n")
        heading = max(number for number in range(place) if lines[number].startswith("## "))
        assert lines[heading] == f"## `{track}`"
        header = next(line for line in lines[heading:] if line.startswith("| date"))
        assert header.count("|") == lines[place].replace("\\|", "").count("|")
        assert lines[place - 1].startswith("|")
    assert cells[3:6] == ["8", "2.0 s", "22.5%"]
    assert cells[6:9] == ["90.0%", "32.200 ± 2.541", "32.000"]
    with pytest.raises(ValueError, match=r"no record: the attempt ends at 32.000 dB, the target is 32.200 dB"):
        record_cells({"baseline": ATTEMPT, "attempt": BASELINE}, LOG, "me", "", "")


@pytest.mark.parametrize(
    ("key", "sentence"),
    [
        ("model.blocks=3", "model.blocks: expected the baseline's"),
        ("data.patch=16", "data.patch: expected the baseline's"),
        ("train.validate_every=1", "train.validate_every: expected the baseline's"),
        ("teacher.checkpoint=net.pth", "an attempt trains all that it needs"),
    ],
)
def test_an_attempt_that_is_not_to_be_compared_is_refused(key: str, sentence: str) -> None:
    attempt, baseline = config.load(TRACKS[0], ["objective.name=eco", key]), config.load(f"{TRACKS[0]}_adam")
    with pytest.raises(ValueError, match=sentence):
        entrants(attempt, baseline, leave_one_out=False)


def test_leaving_a_part_out_puts_the_baselines_in_its_place() -> None:
    attempt, baseline = config.load(TRACKS[0], ["objective.name=eco"]), config.load(f"{TRACKS[0]}_adam")
    found = entrants(attempt, baseline, leave_one_out=True)
    parts = [(one.optimizer, one.objective.name, one.train.precision, one.train.steps) for one in found.values()]
    assert dict(zip(found, parts, strict=True)) == {
        "baseline": (baseline.optimizer, "vanilla", "auto", 800),
        "attempt": (attempt.optimizer, "eco", "bf16", 280),
        "attempt without eco": (attempt.optimizer, "vanilla", "bf16", 280),
        "attempt without muon": (baseline.optimizer, "eco", "bf16", 800),
        "attempt without bf16": (attempt.optimizer, "eco", "auto", 280),
    }
    assert "attempt without vanilla" not in entrants(config.load(TRACKS[0]), baseline, leave_one_out=True)


@pytest.fixture
def arguments(photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A tiny attempt, in a folder of its own."""
    write_png(tmp_path / "train" / "eyes.png", photo[60:113, 120:179])
    write_png(tmp_path / "eye" / "a.png", photo[70:98, 150:180])
    shutil.copy(speedrun.DOCS / "records.md", tmp_path)
    (tmp_path / "evidence").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(speedrun, "DOCS", tmp_path)
    keys: dict[str, Any] = {"data.train": "train", "data.validation": "eye", "data.patch": 6, "model.features": 8}
    keys |= {"objective.name": "eco", "model.blocks": 1, "teacher.steps": 3, "train.steps": 4, "train.batch_size": 2}
    keys |= {"train.validate_every": 3, "train.device": "cpu", "optimizer.warmup_steps": 0, "data.loader": "plain"}
    given = [word for key, value in keys.items() for word in (f"--{key}", str(value))]
    return ["speedrun", "--run", "r", "--seeds", "2", "--leave-one-out", *given]


@pytest.mark.slow
def test_it_trains_as_the_trainer_does_and_the_clock_stands_still_for_validation(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late, clock = 0.0, time.perf_counter

    def scored(*values: Any) -> Any:
        nonlocal late
        late += 1e6
        return validation_scores(*values)

    monkeypatch.setattr(time, "perf_counter", lambda: clock() + late)
    monkeypatch.setattr(speedrun, "validation_scores", scored)
    monkeypatch.setattr(sys, "argv", arguments)
    speedrun.main()
    monkeypatch.setattr(time, "perf_counter", clock)
    log = json.loads(Path("r/speedrun.json").read_text(encoding="utf-8"))
    parts = [f"attempt without {part}" for part in ("eco", "muon", "bf16")]
    assert list(log["trainings"]) == ["baseline", "attempt", *parts]
    for name, by_seed in log["trainings"].items():
        assert list(by_seed) == ["2", "3"]
        recipe = config.validate(tomllib.loads(log["recipes"][name]), name).model_copy(update={"seed": 3})
        images = open_images(recipe.data, 2, Path("r"), needs_centroids=True)
        teacher = load_teacher(Path("r/teacher/checkpoints/last.safetensors"), 2)
        sr = obtain_centroids(recipe, Path("r"), images, teacher) if recipe.needs_centroids else None
        with RunFolder(Path(f"again-{name}"), recipe, resume=False) as run:
            train_network(run, images.hr, sr, ValidationSets(read_images(recipe.data.validation, 2)))
        expected = [(row["step"], row["psnr_y"]) for row in read_rows(run.folder) if "psnr_y" in row]
        assert [(steps, psnr) for steps, _, psnr in by_seed["3"]] == expected
        assert [steps for steps, _ in expected] == [3, 4]
        assert all(0 < seconds < 1e6 for points in by_seed.values() for _, seconds, _ in points)
    assert log["preparation"]["teacher"] < 1e6
    assert "attempt without muon" in capsys.readouterr().out


@pytest.mark.slow
def test_it_goes_on_with_what_is_missing_and_with_nothing_else(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[str, int]] = []

    def train_once(recipe: Config, *_: Any) -> Points:
        trained.append((recipe.optimizer.name, recipe.seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return [(4, 1.0, 30.0 + (recipe.optimizer.name == "muon"))]

    monkeypatch.setattr(speedrun, "train_once", train_once)
    arguments.remove("--leave-one-out")
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(KeyboardInterrupt):
        speedrun.main()
    monkeypatch.setattr(sys, "argv", [*arguments, "--who", "me", "--what", "muon"])
    speedrun.main()
    assert trained == [("adam", 2), ("muon", 2), ("adam", 3), ("adam", 3), ("muon", 3)]
    assert json.loads(Path("evidence/speedrun-1.json").read_text(encoding="utf-8"))["trainings"]["attempt"]["3"]
    row = next(line for line in Path("records.md").read_text(encoding="utf-8").splitlines() if "| me | muon |" in line)
    assert "| 4 | 1.0 s | 100.0% |" in row
    assert "[2 seeds](evidence/speedrun-1.json)" in row
    assert "command" not in Path("evidence/speedrun-1.json").read_text(encoding="utf-8"), "it names somebody's folders"
    monkeypatch.setattr(sys, "argv", [*arguments, "--train.ema_decay", "0.9"])
    with pytest.raises(ValueError, match="r: holds another baseline; choose another folder with --run"):
        speedrun.main()
