"""What a training says, by a clock of its own: how far it is, how fast, and never more than the machine can do."""

import json
from pathlib import Path
from typing import Any

import pytest

from eco_fast import config
from eco_fast.data.batch import BatchPlanner
from eco_fast.training import telemetry as module
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.state import TrainingState
from eco_fast.training.telemetry import Telemetry

VALUES: dict[str, Any] = {
    "model": {"features": 4, "blocks": 1},
    "data": {"patch": 8},
    "objective": {"name": "vanilla"},
    "train": {"steps": 1000, "batch_size": 10, "log_every": 10, "device": "cpu"},
}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class StillLoader:
    waited = 0.0


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def telemetry(tmp_path: Path, clock: Clock) -> Telemetry:
    run = RunFolder(tmp_path / "run", config.validate(VALUES, "test"), resume=False)
    loader: Any = StillLoader()
    loader.planner = BatchPlanner(run.config, [(40, 40)])
    return Telemetry(run, loader, [], TrainingState(run.config, "cpu", None, "student"), "student", clock=clock)


def train(telemetry: Telemetry, clock: Clock, steps: int, seconds: float = 1.0) -> None:
    """Count steps of so many seconds, with a report at each tenth."""
    for step in range(steps):
        clock.now += seconds
        telemetry.add(step)
        if (step + 1) % 10 == 0:
            telemetry.report(step + 1)


def test_a_file_hears_once_a_minute_and_at_the_end(
    telemetry: Telemetry, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with telemetry:
        train(telemetry, clock, 200)
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("  ")[0] for line in lines[:-1]] == [f"student step {step}/1000" for step in (60, 120, 180)]
    assert "  10.0 patches/s  " in lines[0]
    assert lines[0].endswith("  left 15.7 min")  # 940 steps of a second
    assert lines[-1].startswith("student 200 steps in 3.3 min, 10 patches/s, ")
    rows = (telemetry.run.metrics).read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(10, 201, 10))


def test_a_validation_counts_as_a_word_and_its_score_is_on_the_line(
    telemetry: Telemetry, clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with telemetry:
        train(telemetry, clock, 50)
        assert telemetry._parts() == [
            "student 50/1000",
            "15.8 min left",
            "no step accepted",
            "10 patches/s",
            "waiting 0%",
        ]
        telemetry.write(50, {"psnr_y": 30.125})
        telemetry.say("step 50/1000  validation 30.125 dB")
        assert "30.12 dB" in telemetry._parts()
        clock.now += 59
        telemetry.report(51)
        assert capsys.readouterr().out == "student step 50/1000  validation 30.125 dB\n"


def test_the_line_has_room_in_80_columns(telemetry: Telemetry, clock: Clock) -> None:
    with telemetry:
        train(telemetry, clock, 10, seconds=0.03)
        telemetry.write(10, {"psnr_y": 30.125})
        telemetry._loss = 12.3456
    assert telemetry._parts() == [
        *("student 10/1000", "30 s left", "loss 12.3", "30.12 dB", "333 patches/s", "waiting 0%")
    ]
    assert len("  ".join(telemetry._parts())) < 80


@pytest.mark.parametrize(("second", "share"), [(100.0, "100%"), (400.0, "25%"), (99.0, None)])
def test_a_training_faster_than_the_measured_peak_has_it_measured_again(
    second: float,
    share: str | None,
    telemetry: Telemetry,
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    measured = {False: 50.0, True: second}
    monkeypatch.setattr(module, "measured_peak", lambda *_, again=False: measured[again])
    monkeypatch.setattr(module, "training_flops", lambda *_: 10)  # at 10 patches a second: 100 FLOP/s
    with telemetry:
        train(telemetry, clock, 120)
    lines = capsys.readouterr().out.splitlines()
    unknown = "student the machine's peak is unknown: twice it was measured below the training's own speed"
    assert (unknown in lines) == (share is None)
    progress, closing = lines[-2], lines[-1]
    assert progress.startswith("student step 120/1000") or share is None
    assert ("of the measured peak" in progress) == ("of peak" in closing) == (share is not None)
    assert share is None or (f", {share} of the measured peak" in progress and f", {share} of peak" in closing)


def test_a_larger_peak_is_kept_for_the_next_training(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from eco_fast.training import profiling

    rates = iter([5.0, 4.0, 3.0, 2.0, 7.0, 6.0])
    for work in ("matmul", "convolution"):
        monkeypatch.setattr(profiling, work, lambda *_: (None, 1.0))
    monkeypatch.setattr(profiling, "best_seconds", lambda *_: 1 / next(rates))
    monkeypatch.setattr(profiling, "_PEAKS", {})
    peaks = [profiling.measured_peak("cpu", torch.float32, again=again) for again in (False, False, True, True, False)]
    assert peaks == [5.0, 5.0, 5.0, 7.0, 7.0]
