"""Trackers, the real ones, without a network: they are told what the run says, and no weight knows of them."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.prepare import prepare
from eco_fast.data.store import Store
from eco_fast.training import trackers as module
from eco_fast.training.loop import train_network
from eco_fast.training.run_folder import RunFolder, read_rows
from eco_fast.training.telemetry import Telemetry
from eco_fast.training.trackers import OPENED, Trackers
from eco_fast.training.validation import ValidationSets
from tests.helpers import complaint

pytestmark = pytest.mark.filterwarnings("ignore::Warning")  # those of the programs are none of ours
OTHERS = ("wandb", "mlflow", "trackio")
Told = Mapping[int, Mapping[str, float]]
"""By step and name."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Where they keep what they are told, from the moment on that they are imported."""
    folder = tmp_path_factory.mktemp("trackers")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        patch.setenv("WANDB_SILENT", "true")
        patch.setenv("MLFLOW_TRACKING_URI", f"file:{folder / 'mlflow'}")
        patch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        yield folder


@pytest.fixture(scope="module")
def store(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("store")
    write_png(folder / "train" / "eyes.png", photo[60:113, 120:179])
    return prepare([str(folder / "train")], folder / "store")


@pytest.fixture(scope="module")
def sets(photo: Pixels) -> ValidationSets:
    return ValidationSets({"eye.png": photo[70:98, 150:180]})


class Stopped(BaseException):
    """As sudden as a kill: nothing catches it."""


def recipe(*trackers: str) -> Config:
    values: dict[str, Any] = {
        "data": {"patch": 6},
        "model": {"features": 8, "blocks": 1},
        "objective": {"name": "vanilla"},
        "optimizer": {"learning_rate": 1e-2},
        "train": {"steps": 12, "batch_size": 2, "log_every": 4, "validate_every": 6, "checkpoint_every": 4},
    }
    values["train"] |= {"compile": False, "device": "cpu", "trackers": trackers}
    return config.validate(values, "test")


@pytest.fixture
def train(store: Store, sets: ValidationSets, places: Path) -> Callable[..., Path]:  # noqa: ARG001 - set before an import
    def trained(folder: Path, *trackers: str, resume: bool = False) -> Path:
        with RunFolder(folder, recipe(*trackers), resume=resume) as run:
            train_network(run, store, None, sets, "student")
        return folder

    return trained


@pytest.fixture(scope="module")
def alone(store: Store, sets: ValidationSets, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody is told of."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    with RunFolder(folder, recipe(), resume=False) as run:
        train_network(run, store, None, sets, "student")
    assert not list(folder.glob("events*"))
    assert not (folder / "trackers.json").exists()
    return folder


# --- what each of them has heard, by its own reader ---


def of_tensorboard(run: Path, _: Path) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(run), {"scalars": 0}).Reload()
    told: dict[int, dict[str, float]] = {}
    for name in read.Tags()["scalars"]:
        for one in read.Scalars(name):
            assert name not in told.setdefault(one.step, {}), "once"
            told[one.step][name] = one.value
    return told


def of_mlflow(run: Path, _: Path) -> Told:
    import mlflow

    client, told = mlflow.MlflowClient(), dict[int, dict[str, float]]()
    found = client.get_run(ids_of(run)["mlflow"])
    assert found.info.status == "FINISHED"
    assert found.data.params["train.batch_size"] == "2"
    for name in found.data.metrics:
        for one in client.get_metric_history(found.info.run_id, name):
            told.setdefault(one.step, {})[name] = one.value
    return told


def of_trackio(run: Path, _: Path) -> Told:
    from trackio import SQLiteStorage

    assert SQLiteStorage.get_runs("eco-fast").count(ids_of(run)["trackio"]) == 1
    told: dict[int, dict[str, float]] = {}
    for row in SQLiteStorage.get_logs("eco-fast", ids_of(run)["trackio"]):
        numbers = {name: value for name, value in row.items() if isinstance(value, int | float)}
        told.setdefault(int(numbers.pop("step")), {}).update(numbers)
    return told


def of_wandb(run: Path, _: Path) -> Told:
    """Its file, which it has no reader for, holds every value as JSON."""
    files = list(run.glob(f"wandb/*/run-{ids_of(run)['wandb']}.wandb"))
    content = b"".join(file.read_bytes() for file in files)
    told: dict[int, dict[str, float]] = {}
    for row in read_rows(run):
        heard = {name: value for name, value in row.items() if json.dumps(value).encode() in content}
        told.setdefault(row["step"], {}).update(heard)
    return told


READ = {"tensorboard": of_tensorboard, "wandb": of_wandb, "mlflow": of_mlflow, "trackio": of_trackio}


def ids_of(run: Path) -> dict[str, str]:
    ids: dict[str, str] = json.loads((run / "trackers.json").read_text(encoding="utf-8"))
    return ids


def installed(name: str) -> None:
    if name != "tensorboard":
        pytest.importorskip(name, reason=f"needs {name}")


# --- what is told, and what it changes ---


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in OTHERS)) for name in READ])
def test_a_tracker_hears_everything_and_changes_no_bit(
    name: str, train: Callable[..., Path], alone: Path, places: Path, tmp_path: Path
) -> None:
    installed(name)
    run = train(tmp_path / "run", name)
    for file in ("metrics.jsonl", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
        assert (run / file).read_bytes() == (alone / file).read_bytes()
    told = READ[name](run, places)
    for row in read_rows(run):
        step, values = row.pop("step"), {key: value for key, value in row.items() if value is not None}
        assert {key: told[step][key] for key in values} == pytest.approx(values, rel=1e-6)
    assert name == "wandb" or all("patches_per_second" in told[step] for step in (4, 8, 12))


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in OTHERS)) for name in READ])
def test_a_resumed_run_goes_on_where_it_was(
    name: str, train: Callable[..., Path], alone: Path, places: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(name)
    report = Telemetry.report

    def stop(telemetry: Telemetry, step: int) -> None:
        report(telemetry, step)
        if step == 8:  # before its checkpoint: steps 5 to 8 are done again
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "report", stop)
        with pytest.raises(Stopped):
            train(tmp_path / "run", name)
    ids = ids_of(tmp_path / "run") if name in OTHERS else {}
    run = train(tmp_path / "run", name, resume=True)
    assert (run / "checkpoints/last.safetensors").read_bytes() == (alone / "checkpoints/last.safetensors").read_bytes()
    assert not ids or ids_of(run) == ids
    told = READ[name](run, places)
    assert all("loss" in told[step] for step in (4, 8, 12))


def test_several_are_told_and_a_new_run_in_the_folder_is_another_one(
    train: Callable[..., Path], places: Path, tmp_path: Path
) -> None:
    installed("mlflow")
    run = train(tmp_path / "run", "mlflow", "tensorboard")
    first = ids_of(run)
    assert of_mlflow(run, places).keys() == of_tensorboard(run, places).keys() == {4, 6, 8, 12}
    for one in ("metrics.jsonl", "checkpoints"):
        path = run / one
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert ids_of(train(run, "mlflow")) != first


# --- what may go wrong ---


def test_one_that_is_not_installed_is_a_sentence_before_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "trackio", None)
    run = str(tmp_path / "run")
    for command in (["train", "--train.trackers", "tensorboard", "trackio"], ["compare", "quickstart"]):
        chosen = [*command, "--run", run] + ["--train.trackers", "trackio"] * (command[0] == "compare")
        assert complaint(capsys, *chosen).startswith("train.trackers: trackio is not installed; pip install trackio")
    assert not (tmp_path / "run").exists()
    monkeypatch.delitem(sys.modules, "trackio")
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    (tmp_path / "trackio").mkdir()  # a folder of results is no program
    with pytest.raises(ValueError, match="trackio is not installed"):
        module.check_trackers(["trackio"])


def test_one_that_does_not_start_is_a_sentence_before_the_first_step(
    train: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("mlflow")
    (tmp_path / "in the way").touch()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"file:{tmp_path / 'in the way'}")
    with pytest.raises(ValueError, match=r"^train\.trackers: mlflow does not start \(.*\); mend it, or leave it out"):
        train(tmp_path / "run", "tensorboard", "mlflow")
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_one_that_fails_on_the_way_is_said_once_and_the_run_goes_on(
    train: Callable[..., Path],
    alone: Path,
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Breaks:
        id = "it"

        def __init__(self, *_: object) -> None:
            self.heard = 0

        def log(self, *_: object) -> None:
            self.heard += 1
            if self.heard > 2:
                raise RuntimeError("no\nline")

        def close(self, *, whole: bool) -> None:
            raise AssertionError(whole)

    monkeypatch.setitem(OPENED, "trackio", Breaks)
    run = train(tmp_path / "run", "trackio", "tensorboard")
    said = [line for line in capsys.readouterr().out.splitlines() if "trackio" in line]
    assert said == ["student warning: trackio failed (no line) and is told no more; the run goes on"]
    assert (run / "checkpoints/last.safetensors").read_bytes() == (alone / "checkpoints/last.safetensors").read_bytes()
    assert {4, 6, 8, 12} == of_tensorboard(run, places).keys()


def test_a_store_that_is_gone_on_the_way_stops_no_run(
    train: Callable[..., Path],
    alone: Path,
    places: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    installed("mlflow")
    report = Telemetry.report

    def lose(telemetry: Telemetry, step: int) -> None:
        report(telemetry, step)
        shutil.rmtree(places / "mlflow", ignore_errors=True)

    monkeypatch.setattr(Telemetry, "report", lose)
    run = train(tmp_path / "run", "mlflow")
    said = [line for line in capsys.readouterr().out.splitlines() if "mlflow" in line]
    assert len(said) == 1
    assert said[0].startswith("student warning: mlflow failed (")
    assert (run / "checkpoints/last.safetensors").read_bytes() == (alone / "checkpoints/last.safetensors").read_bytes()


def test_an_end_that_fails_is_said_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stays(module.TensorBoard):
        def close(self, *, whole: bool) -> None:
            super().close(whole=whole)
            raise OSError(28, "No space left on device")

    monkeypatch.setitem(OPENED, "tensorboard", Stays)
    said: list[str] = []
    trackers = Trackers(RunFolder(tmp_path, recipe("tensorboard"), resume=False), 0, said.append)
    trackers.close(whole=True)
    trackers.close(whole=True)
    assert len(said) == 1
    assert "No space left" in said[0]


def test_the_key_takes_names_and_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert config.load("quickstart").train.trackers == ("tensorboard",)
    said = complaint(capsys, "train", "--train.trackers", "wandbb", "--run", str(tmp_path))
    assert said.startswith("--train.trackers: expected tensorboard, wandb, mlflow or trackio")
    from eco_fast.cli.main import parser

    assert parser().parse_args(["train", "--train.trackers"]).overrides == {"train.trackers": []}
