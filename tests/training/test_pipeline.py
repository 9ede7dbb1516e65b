"""What a dry run says, against counts by hand and what a run then does; it leaves nothing behind."""

from pathlib import Path

import pytest
import torch

from eco_fast import config
from eco_fast.cli import main as cli
from eco_fast.config.recipe_files import recipe_names
from eco_fast.data.images import Pixels, write_png
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from eco_fast.training import dry_run
from eco_fast.training.cost import Cost, estimate
from eco_fast.training.forecast import Measured
from eco_fast.training.precision import Precision
from eco_fast.training.profiling import saved_bytes
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from tests.helpers import plain_loader

PARAMETERS = {  # as published: architecture, features, scale
    ("edsr", 32, 2): 195_971,
    ("edsr", 64, 2): 1_369_859,
    ("edsr", 64, 8): 1_665_283,
    ("edsr", 256, 2): 40_729_603,
    ("edsr", 256, 3): 43_680_003,
    ("edsr", 256, 4): 43_089_923,
    ("rcan", 64, 2): 15_444_643,
    ("rcan", 64, 4): 15_592_355,
    ("swinir", 60, 2): 1_087_727,
}
LIKE_OTHERS = {"rcan_x2_vanilla", "rcan_x3_eco", "rcan_x3_vanilla", "rcan_x4_eco"}
"""A dry run times a step of each network; these differ from other RCANs by a scale or an objective, as EDSR's do."""
TINY = """
[data]
train = ["hr"]
validation = ["hr/0.png"]
patch = 8
[model]
features = 8
blocks = 1
[teacher]
steps = 2
[train]
steps = 4
batch_size = 2
checkpoint_every = 1
keep_checkpoints = 4
device = "cpu"
compile = false
baseline = true
"""


@pytest.fixture(autouse=True)
def _without_a_rehearsal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which test_forecast.py makes one."""
    measured = Measured(start=1.0, step=0.5, validation=0.0, checkpoint=0.0, watts=None, memory=1.0)
    monkeypatch.setattr(dry_run.Rehearsal, "measure", lambda _: (measured, "not measured"))


@pytest.fixture
def here(tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with three images and a recipe."""
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        write_png(tmp_path / "hr" / f"{index}.png", photo[40 * index : 40 * index + 40, :50])
    (tmp_path / "tiny.toml").write_text(TINY, encoding="utf-8")
    return tmp_path


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """The lines of a dry run, by their first word."""
    capsys.readouterr()
    assert cli.main(["train", *arguments, "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {line.split()[0]: line.partition(" ")[2].strip() for line in lines}


def cost(name: str, *overrides: str, precision: str = "fp32") -> Cost:
    return estimate(config.load(name, overrides), "cpu", Precision(precision))


# --- what it costs ---


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * name.startswith(("rcan", "swinir")))
        for name in recipe_names()
        if name not in LIKE_OTHERS
    ],
)
def test_every_recipe_runs_dry_and_leaves_nothing_behind(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe, lines = config.load(name), said(capsys, name)
    assert not isinstance(recipe.model, config.OwnModel)
    key = (recipe.model.name, recipe.model.features, recipe.scale)
    if name != "quickstart":
        assert f" {PARAMETERS[key]:,} parameters" in lines["network"]
    assert lines["prepare"].startswith("data.train is missing") == (not recipe.data.train)
    train = recipe.train
    assert (
        f"{train.steps:,} steps of {train.batch_size} patches, {train.steps * train.batch_size:,} patches"
        in lines["training"]
    )
    assert ("missing" in lines["train"]) == bool(recipe.model.start_from)
    assert lines["teacher"].startswith(f"{recipe.teacher.steps:,} steps" if recipe.needs_centroids else "not needed")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("patch", [48, 20])
def test_multiply_adds_by_hand(patch: int) -> None:
    convolutions = 3 * 64 + 16 * 2 * 64 * 64 + 64 * 64 + 64 * 256 + 4 * 64 * 3  # the last one at four times the pixels
    made = cost("edsr_baseline_x2_eco", f"data.patch={patch}")
    assert made.multiply_adds == 9 * convolutions * patch**2


def test_memory_by_hand() -> None:
    """EDSR-baseline keeps its convolutions' inputs, the upsampler's weights reordered, and the gradient of the loss."""
    channels = 3 + 16 * (64 + 64) + 64 + 64 + 4 * 64 + 4 * 3  # head, blocks, end of the body, upsampler, last, loss
    made = cost("edsr_baseline_x2_eco")
    reordered = 4 * 9 * 64 * 256
    assert made.activations == pytest.approx(4 * 16 * 48**2 * channels + reordered, abs=16)
    assert made.weights == 4 * 1_369_859
    assert made.memory == 4 * made.weights + made.activations
    averaged = cost("edsr_baseline_x2_eco", "train.ema_decay=0.9", "train.micro_batch=4")
    assert averaged.at_once == 4
    assert averaged.activations == pytest.approx(4 * 4 * 48**2 * channels + reordered, abs=16)
    assert averaged.memory == 5 * made.weights + averaged.activations
    assert (
        cost("edsr_baseline_x2_eco", "train.batch_size=10", "train.micro_batch=4").at_once == 4
    )  # in parts of 3, 3 and 4


def test_half_precision_halves_the_activations_and_adds_a_copy_of_the_weights() -> None:
    full, half = (cost("edsr_baseline_x2_eco", precision=name) for name in ("fp32", "bf16"))
    assert half.activations - half.weights / 2 == pytest.approx(full.activations / 2, rel=0.01)


@pytest.mark.parametrize("changes", [[], ["objective.name=vanilla", "data.noise_sigma=5"], ["objective.name=kd"]])
@pytest.mark.parametrize("model", ["edsr", "rcan"])
def test_the_estimate_is_what_a_real_step_keeps(model: str, changes: list[str], photo: Pixels, here: Path) -> None:
    small = [f'model={{name = "{model}", features = 16, blocks = 2}}', "train.steps=3", "train.baseline=false"]
    recipe = config.load(str(here / "tiny.toml"), [*small, *changes])
    state = TrainingState(recipe, "cpu", None, "test")
    step = TrainStep(state, 2)
    samples = plain_loader(recipe, [photo], [photo] if recipe.needs_centroids else None).batch_at(1).samples
    real = saved_bytes(state.network.parameters(), lambda: step.loss(samples.complete(), torch.ones(())))
    assert estimate(recipe, "cpu", state.precision).activations == pytest.approx(real, abs=16)


# --- what it would do ---


def tree(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(path): (path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(folder.rglob("*"))}


@pytest.mark.slow
def test_stages_before_during_and_after_a_run(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = ("tiny.toml", "--run", "run")
    before = said(capsys, *run)
    assert before["prepare"] == "3 images of hr into run/store"
    assert (before["teacher"], before["centroids"]) == ("2 steps from scratch", "after the teacher")
    assert (before["train"], before["baseline"]) == ("4 steps from scratch", "4 steps from scratch")
    assert (before["validate"], before["evaluate"]) == ("1 images of hr/0.png", "1 images of hr/0.png")
    assert not Path("run").exists()

    assert cli.main(["train", *run]) == 0
    files = tree(here)
    after = said(capsys, *run, "--resume")
    assert after["prepare"] == "3 images in run/store, to be compared with 3 images of hr"
    assert after["centroids"].startswith("reused: 3 centroids in run/store/centroids/x2-uint8-")
    assert after["teacher"] == "finished, at step 2"
    assert after["train"] == after["baseline"] == "finished, at step 4"
    assert said(capsys, *run)["train"].startswith("finished, at step 4; refused: run: already holds a run; continue")
    other = said(capsys, *run, "--resume", "--train.batch_size", "3")
    assert other["train"].startswith("finished, at step 4; refused: run: holds a run with another train.batch_size")
    assert said(capsys, "--run", "run", "--resume") == after
    assert tree(here) == files

    Path("run/checkpoints/step-00000002.state.pt").replace("run/checkpoints/last.state.pt")
    Path("hr/1.png").unlink()
    for file in Path("run/store/centroids").glob("*/manifest.json"):
        file.unlink()
    during = said(capsys, *run, "--resume")
    assert during["train"] == "goes on at step 2 of 4"
    assert during["prepare"].endswith("to be compared with 2 images of hr")
    assert during["centroids"].startswith("into run/store/centroids/")
    Path("run/teacher/checkpoints/step-00000001.state.pt").replace("run/teacher/checkpoints/last.state.pt")
    early = said(capsys, *run, "--resume")
    assert (early["teacher"], early["centroids"]) == ("goes on at step 1 of 2", "after the teacher")


def test_what_is_missing_is_said(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = "--data.train gone --data.validation gone --teacher.checkpoint gone.pt --model.start_from x2.pt"
    lines = said(capsys, "tiny.toml", *gone.split())
    assert lines["prepare"] == "gone: there is no such file or folder into runs/tiny/store"
    assert lines["validate"] == "gone: there is no such file or folder"
    assert lines["teacher"] == "gone.pt is missing"
    assert lines["train"] == "4 steps from x2.pt, which is missing"
    save_network(here / "x2.pt", EDSR(2, 8, 1))
    assert said(capsys, "tiny.toml", "--model.start_from", "x2.pt")["train"] == "4 steps from x2.pt"
    assert said(capsys, "tiny.toml", "--data.train", "--data.store", "s")["prepare"].startswith("s: not ")
    files = said(capsys, "tiny.toml", "--data.source", "files", "--data.centroids", "hr")
    assert files["prepare"] == "not needed: 3 images of hr, decoded at every step"
    assert files["centroids"] == "not needed: 3 images of hr"


def test_a_dry_run_refuses_what_the_run_would_refuse(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for option, expected in (
        ("--train.step 3", "unknown option --train.step"),
        ("--train.device cuda:99", "cuda:99 is asked"),
        ("--objective.name residual", "residuals, which have no PSNR"),
    ):
        assert cli.main(["train", str(here / "tiny.toml"), "--dry-run", *option.split()]) == 2
        assert expected in capsys.readouterr().err
