"""What a training is said to take, against counts one by one, and against what it then takes on a clock of its own."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

from eco_fast import config
from eco_fast.cli import main as cli
from eco_fast.config import Config, Train
from eco_fast.data.batch import Batch, Samples
from eco_fast.data.images import Pixels
from eco_fast.data.prepare import prepare
from eco_fast.evaluation import scoring
from eco_fast.training import dry_run, forecast, validation
from eco_fast.training.checkpoints import Checkpoints
from eco_fast.training.cost import estimate
from eco_fast.training.dry_run import Rehearsal
from eco_fast.training.forecast import Forecast, Measured, joules
from eco_fast.training.loop import train_network
from eco_fast.training.precision import choose_precision
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.validation import Validation, ValidationSets
from tests.helpers import leaves, write_crops_of

TINY = """
[data]
train = ["hr"]
validation = ["hr/0.png", "hr/1.png"]
patch = 8
[model]
features = 8
blocks = 1
[teacher]
steps = 50
[train]
steps = 110
batch_size = 2
validate_every = 30
checkpoint_every = 40
device = "cpu"
compile = false
"""
MEASURED = Measured(start=7.0, step=0.5, validation=11.0, checkpoint=3.0, watts=None, memory=1.25)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def here(tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_crops_of(photo, Path("hr"))
    Path("tiny.toml").write_text(TINY, encoding="utf-8")
    return tmp_path


# --- counts ---


@pytest.mark.parametrize("done", [0, 25, 60, 99])
@pytest.mark.parametrize(("validate_every", "checkpoint_every"), [(30, 40), (7, 1000), (1000, 9), (50, 50), (20, 100)])
def test_what_happens_between_steps_is_counted(done: int, validate_every: int, checkpoint_every: int) -> None:
    train = Train(steps=100, validate_every=validate_every, checkpoint_every=checkpoint_every)
    expected = 0.0
    for step in range(done + 1, 101):
        validates = step % validate_every == 0 or step == 100
        saves = validates or step % checkpoint_every == 0
        expected += 0.5 + 11.0 * validates + 3.0 * saves
    assert MEASURED.seconds(train, done) == pytest.approx(expected)


def test_a_share_of_the_time_is_added() -> None:
    """0.5 s a step, one validation at the end, and as many on the way as 2% allow."""
    train = Train(steps=1000, validate_every="2%", checkpoint_every=500)
    assert MEASURED.seconds(train) == pytest.approx((1000 * 0.5 + 11 + 2 * 3) * 1.02)


def test_what_seconds_mean() -> None:
    assert MEASURED.told(90, 0) == "1.5 min, 1.25 GB of memory"
    assert MEASURED.told(7200, 2.5) == "2.0 h, 5.00 at 2.5 an hour, 1.25 GB of memory"
    powered = Measured(7.0, 0.5, 11.0, 3.0, watts=300.0, memory=1.25)
    assert powered.told(7200, 0) == "2.0 h, 0.6 kWh, 1.25 GB of memory"


def test_a_processor_tells_its_energy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forecast, "PACKAGES", tmp_path)
    assert joules("cpu") is None
    for name, microjoules in (("intel-rapl:0", 5_000_000), ("intel-rapl:1", 7_000_000), ("intel-rapl:0:0", 1_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "energy_uj").write_text(f"{microjoules}\n", encoding="ascii")
    assert joules("cpu") == 12.0  # the last one is a part of the first


# --- a run ---


def test_a_training_takes_what_was_said(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second a step, 5 s a validation, 2 s a checkpoint: said after 25 steps, to the second."""
    clock = Clock()

    def ticks(owner: type, name: str, seconds: float) -> None:
        whole = getattr(owner, name)

        def slow(*args: Any, **kwargs: Any) -> Any:
            clock.now += seconds
            return whole(*args, **kwargs)

        monkeypatch.setattr(owner, name, slow)

    ticks(TrainStep, "__init__", 9.0)
    ticks(TrainStep, "__call__", 1.0)
    ticks(Validation, "run", 5.0)
    ticks(Checkpoints, "save", 2.0)
    monkeypatch.setattr(Validation, "foretell", lambda _: 5.0)
    monkeypatch.setattr(Checkpoints, "rehearse", lambda *_: 2.0)
    monkeypatch.setattr(Validation, "_is_best", lambda *_: True)
    made = config.load("tiny.toml", ["objective.name=vanilla", "train.price_per_hour=3600", "train.validate_every=20"])
    store, images = prepare(["hr"], here / "store"), {"a": torch.zeros(40, 40, 3, dtype=torch.uint8).numpy()}
    ahead = Forecast([made], clock=clock)
    with RunFolder(here / "run", made, resume=False) as run:
        train_network(run, store, None, ValidationSets(images), "student", forecast=ahead)
    said = capsys.readouterr().out
    # 110 steps; validations at 20, 40, 60, 80, 100, 110; checkpoints with them, and none beside at 40 and 80
    whole = 9 + 110 + 6 * 5 + 6 * 2
    assert f"student will take {whole / 60:.1f} min, {whole:.2f} at 3600 an hour, " in said
    assert ": 1e+03 ms a step, 5 s a validation, 2 s a checkpoint; " in said
    assert f"; with the trainings behind it {whole / 30:.1f} min\n" in said
    assert f"student took {whole / 60:.1f} min, +0.0% of what was foretold, and " in said
    assert ahead.measured is not None
    assert (ahead.measured.start, ahead.measured.step) == (9.0, 1.0)


@pytest.mark.usefixtures("here")
def test_the_forecast_changes_no_bit(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["train", "tiny.toml", "--objective.name", "vanilla", "--run"]
    assert cli.main([*command, "told"]) == 0
    assert capsys.readouterr().out.count("student will take ") == 1
    monkeypatch.setattr(Forecast, "add", lambda *_: None)
    assert cli.main([*command, "untold"]) == 0
    assert "will take" not in capsys.readouterr().out
    for name in ("metrics.jsonl", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
        assert Path("told", name).read_bytes() == Path("untold", name).read_bytes(), name


@pytest.mark.usefixtures("here")
def test_short_trainings_are_told_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["train", "tiny.toml", "--objective.name", "vanilla", "--train.steps", "40"]) == 0
    assert not re.search("will take|took", capsys.readouterr().out)


def test_a_validation_is_foretold_by_the_pixels(photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the largest image alone; the network goes on in training, and nothing is reported."""
    clock, scored = Clock(), []
    made = config.load("quickstart", ["model.features=8", "model.blocks=1", "train.compile=false"])
    state = TrainingState(made, "cpu", None, "test")
    whole = scoring.score_network

    def score_network(network: Any, pairs: Any, **options: Any) -> Any:
        pairs = list(pairs)
        for _, pair in pairs:
            scored.append(pair.hr.shape[:2])
            clock.now += pair.hr.shape[0] * pair.hr.shape[1] / 1000
        return whole(network, pairs, **options)

    monkeypatch.setattr(validation, "score_network", score_network)
    sets = ValidationSets({"a": photo[:40, :50], "b": photo[:60, :50]}, {"set": {"c": photo[:30, :40]}})
    checks = Validation(state, sets, None, clock)  # type: ignore[arg-type]
    assert checks.foretell() == pytest.approx((40 * 50 + 60 * 50 + 30 * 40) / 1000)
    assert set(scored) == {(60, 50)}
    assert state.network.training
    assert Validation(state, ValidationSets(), None, clock).foretell() == 0  # type: ignore[arg-type]


def test_a_checkpoint_is_rehearsed_without_a_file(tmp_path: Path) -> None:
    made = config.load("quickstart", ["model.features=8", "model.blocks=1"])
    state = TrainingState(made, "cpu", None, "test")
    before = [one.clone() for one in leaves(state.state_dict()) if isinstance(one, torch.Tensor)]
    with Checkpoints(tmp_path / "checkpoints", made) as checkpoints:
        assert checkpoints.rehearse(state.result, state.state_dict()) > 0
    assert not any(tmp_path.iterdir())
    after = [one for one in leaves(state.state_dict()) if isinstance(one, torch.Tensor)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


# --- a dry run ---

PLAIN = ("--data.loader", "plain")  # DALI leaves files until its process ends


def time_line(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    capsys.readouterr()
    assert cli.main(["train", "tiny.toml", "--run", "run", "--dry-run", *options]) == 0
    return capsys.readouterr().out.splitlines()[-1]


def test_a_dry_run_rehearses_and_leaves_nothing(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TMPDIR", str(here / "tmp"))
    (here / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    files = sorted(here.rglob("*"))
    seen: list[Any] = []
    whole = TrainStep.__call__

    def noted(step: TrainStep, batch: Batch[Samples]) -> Any:
        seen.append(batch.samples.transposed.shape)
        return whole(step, batch)

    monkeypatch.setattr(TrainStep, "__call__", noted)
    said = time_line(capsys, "--train.micro_batch", "auto", "--train.baseline", "true", *PLAIN)
    assert re.fullmatch(
        r"time      .* s, [\d.]+ GB of memory to train \(teacher .* s, train .* s, baseline .* s\); "
        r".* ms a step, [12] patches at once, measured on random images",
        said,
    )
    assert seen == [(2,)] * 25
    assert sorted(here.rglob("*")) == files


@pytest.mark.usefixtures("here")
def test_steps_that_take_too_long_are_not_rehearsed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dry_run, "PATIENCE", 0.0)
    monkeypatch.setattr(dry_run, "time_of", lambda work, *_: (work(), 30.0)[1])
    said = time_line(capsys, "--objective.name", "vanilla")
    assert said.startswith(f"time      {110 * 2 * 30 / 3600:.1f} h, ")
    assert said.endswith("; 30 s for one patch, not compiled, stand for the rest; validation is left out")


@pytest.mark.usefixtures("here")
def test_what_cannot_be_rehearsed_says_why(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert time_line(capsys, "--data.source", "files") == (
        "time      unknown for data.source=files; the run says it after its first steps"
    )

    def small(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")

    monkeypatch.setattr(TrainStep, "__call__", small)
    assert time_line(capsys).startswith("time      unknown: out of memory (CUDA out of memory. Tried ")


def trainings_left(recipe: Config, folder: Path) -> dict[str, tuple[Config, int]]:
    cost = estimate(recipe, "cpu", choose_precision(recipe.train, "cpu"))
    return Rehearsal(recipe, "cpu", cost).trainings_left(folder)


@pytest.mark.usefixtures("here")
def test_only_what_is_left_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    made = config.load("tiny.toml", ["train.baseline=true"])
    left = trainings_left(made, Path("run"))
    assert [(name, one.train.steps, done) for name, (one, done) in left.items()] == [
        ("teacher", 50, 0),
        ("train", 110, 0),
        ("baseline", 110, 0),
    ]
    steps = {Path("run/teacher"): 50, Path("run"): 30}
    monkeypatch.setattr(dry_run, "steps_done", steps.get)
    left = trainings_left(made, Path("run"))
    assert [(name, done) for name, (_, done) in left.items()] == [("train", 30), ("baseline", 0)]
    given = config.load("tiny.toml", ["teacher.checkpoint=a.pt"])
    assert list(trainings_left(given, Path("other"))) == ["train"]
