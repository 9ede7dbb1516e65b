"""Resuming: a run stopped at any moment ends in the same bits as one that was left alone."""

import json
import os
import pkgutil
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.prepare import prepare
from eco_fast.data.store import Store
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from eco_fast.training.loop import train_network
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.validation import ValidationSets


class Stopped(BaseException):
    """As sudden as a kill: nothing catches it."""


@pytest.fixture(scope="module")
def pictures(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_png(folder / "train" / "eyes.png", photo[60:113, 120:179])
    write_png(folder / "train" / "fur.png", photo[150:191, 200:249])
    write_png(folder / "validation" / "eye.png", photo[70:98, 150:180])
    return folder


@pytest.fixture(scope="module")
def store(pictures: Path) -> Store:
    return prepare([str(pictures / "train")], pictures / "store")


def recipe(pictures: Path, **changes: Any) -> Config:
    """A tiny recipe whose reports, validations and checkpoints do not fall together, and which skips some steps."""
    values: dict[str, Any] = {
        "data": {"train": (str(pictures / "train"),), "patch": 6},
        "model": {"features": 8, "blocks": 1},
        "teacher": {"steps": 5},
        "objective": {"name": "vanilla"},
        "optimizer": {"learning_rate": 1e-2, "schedule": "cosine", "clip_value": 0.1, "spike_factor": 1.1},
        "train": {
            "steps": 11,
            "batch_size": 2,
            "log_every": 4,
            "validate_every": 6,
            "checkpoint_every": 3,
            "compile": False,
            "device": "cpu",
        },
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section][name] = value
    return config.validate(values, "test")


class Inline:
    """Does the work at once, so that events have an order."""

    def __init__(self, **_: Any) -> None:
        pass

    def submit(self, work: Callable[..., Any], *arguments: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(work(*arguments))
        except BaseException as error:  # noqa: BLE001 - as a thread does
            future.set_exception(error)
        return future

    def shutdown(self) -> None:
        pass


class Events:
    """Counts what a run does to the world, and stops it just before one such event."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seen: list[str] = []
        self.stop_at: int | None = None
        monkeypatch.setattr(os, "fsync", lambda _: None)  # the process is stopped, not the machine
        monkeypatch.setattr("eco_fast.training.checkpoints.ThreadPoolExecutor", Inline)
        modules = ("training.checkpoints", "utils.files", "models.checkpoint_files", "training.figures")
        writes = [f"eco_fast.{module}.write_atomically" for module in modules]
        writes += [f"eco_fast.data.{module}.write_pixels" for module in ("decode", "store_writer")]
        others = [
            "telemetry.Telemetry.add",
            "run_folder.RunFolder.append",
            "validation.score_network",
        ]
        for target in [*writes, *(f"eco_fast.training.{name}" for name in others)]:
            self._watch(monkeypatch, target)

    def run(self, work: Callable[[], object], stop_at: int | None = None) -> bool:
        """Do the work; whether it was stopped."""
        self.seen.clear()
        self.stop_at = stop_at
        try:
            work()
        except Stopped:
            return True
        return False

    def _watch(self, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
        original, name = pkgutil.resolve_name(target), target.rpartition(".")[2]

        def watched(*arguments: Any, **options: Any) -> Any:
            if self.stop_at == len(self.seen):
                raise Stopped
            self.seen.append(arguments[0].name if isinstance(arguments[0], Path) else name)
            return original(*arguments, **options)

        monkeypatch.setattr(target, watched)


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> Events:
    return Events(monkeypatch)


def flat(state: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of a training state by their path."""
    if isinstance(state, dict):
        return {key: leaf for name, value in state.items() for key, leaf in flat(value, f"{prefix}/{name}").items()}
    if isinstance(state, list | tuple):
        return {
            key: leaf for index, value in enumerate(state) for key, leaf in flat(value, f"{prefix}/{index}").items()
        }
    return {prefix: state}


def same_bits(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor) and isinstance(second, Tensor):
        return first.dtype == second.dtype and first.shape == second.shape and torch.equal(first, second)
    return type(first) is type(second) and bool(first == second)


def assert_equal_runs(run: Path, unbroken: Path, names: tuple[str, ...] = ("last", "best")) -> None:
    """All that depends on the recipe alone is equal, bit for bit."""
    assert (run / "metrics.jsonl").read_bytes() == (unbroken / "metrics.jsonl").read_bytes()
    for name in names:
        weights = f"checkpoints/{name}.safetensors"
        assert (run / weights).read_bytes() == (unbroken / weights).read_bytes(), weights
        one, other = (
            flat(torch.load(folder / "checkpoints" / f"{name}.state.pt", weights_only=True))
            for folder in (run, unbroken)
        )
        assert one.keys() == other.keys()
        assert not [key for key in one if not same_bits(one[key], other[key])], name
        assert sum(isinstance(value, Tensor) for value in one.values()) > 20  # weights, moments, counters


def train(made: Config, store: Store, folder: Path, validation: dict[str, Pixels], *, resume: bool = False) -> None:
    with RunFolder(folder, made, resume=resume) as run:
        train_network(run, store, None, ValidationSets(validation))


@pytest.mark.slow
@pytest.mark.parametrize(("optimizer", "stride", "improvements"), [("adam", 1, 1), ("lamb", 5, 2), ("muon", 7, 2)])
def test_a_run_stopped_before_any_event_resumes_to_the_same_bits(
    optimizer: str,
    stride: int,
    improvements: int,
    pictures: Path,
    store: Store,
    photo: Pixels,
    events: Events,
    tmp_path: Path,
) -> None:
    """Every step, report, validation and file in turn, also between weights and state, and before the first."""
    made = recipe(pictures, optimizer__name=optimizer)
    validation = {"eye": photo[70:98, 150:180]}
    assert not events.run(lambda: train(made, store, tmp_path / "unbroken", validation))
    order = list(events.seen)
    assert order.count("add") == 11
    assert order.count("append") == 3 + 2
    assert order.count("score_network") == 2
    assert order.count("best.state.pt") == improvements
    assert order.count("last.state.pt") == 4
    skipped = [row["skipped"] for row in RunFolder(tmp_path / "unbroken", made, resume=True).rows() if "skipped" in row]
    assert 0 < skipped[1] < skipped[2] < 6
    for moment in range(0, len(order), stride):
        broken = tmp_path / str(moment)
        assert events.run(lambda broken=broken: train(made, store, broken, validation), stop_at=moment)  # type: ignore[misc]
        assert not events.run(lambda broken=broken: train(made, store, broken, validation, resume=True))  # type: ignore[misc]
        try:
            assert_equal_runs(broken, tmp_path / "unbroken")
        except AssertionError as error:
            raise AssertionError(f"stopped before event {moment}, {order[moment]}: {error}") from error


def test_a_run_stopped_again_and_again_arrives_at_the_same_bits(
    pictures: Path, store: Store, events: Events, tmp_path: Path
) -> None:
    made = recipe(pictures, optimizer__name="adamw", train__steps=20)
    train(made, store, tmp_path / "unbroken", {})
    stops = 0
    while events.run(lambda: train(made, store, tmp_path / "broken", {}, resume=True), stop_at=12):
        stops += 1
        assert stops < 20
    assert stops > 2
    assert_equal_runs(tmp_path / "broken", tmp_path / "unbroken", ("last",))


@pytest.mark.slow
def test_stochastic_depth_goes_on_where_it_was_and_does_not_mind_how_a_batch_is_split(
    pictures: Path, store: Store, events: Events, tmp_path: Path
) -> None:
    """What the network draws is a function of the seed, the step and the sample."""
    made = recipe(pictures, train__batch_size=4, optimizer__learning_rate=1e-3)
    sizes: dict[str, Any] = {
        "features": 8,
        "depths": (2, 2),
        "heads": (2, 2),
        "window": 2,
        "patch": 6,
        "drop_path": 0.9,
    }
    made = made.model_copy(update={"model": config.SwinirModel(**sizes)})
    train(made, store, tmp_path / "unbroken", {})
    assert events.run(lambda: train(made, store, tmp_path / "broken", {}), stop_at=16)
    assert not events.run(lambda: train(made, store, tmp_path / "broken", {}, resume=True))
    assert_equal_runs(tmp_path / "broken", tmp_path / "unbroken", ("last",))

    in_parts = made.model_copy(update={"train": made.train.model_copy(update={"micro_batch": 3})})
    train(in_parts, store, tmp_path / "parts", {})
    losses = [[row["loss"] for row in RunFolder(run, one, resume=True).rows() if "loss" in row]
              for run, one in ((tmp_path / "parts", in_parts), (tmp_path / "unbroken", made))]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_a_line_that_was_cut_short_is_written_anew(
    pictures: Path, store: Store, events: Events, tmp_path: Path
) -> None:
    made = recipe(pictures)
    train(made, store, tmp_path / "unbroken", {})
    assert events.run(lambda: train(made, store, tmp_path / "broken", {}), stop_at=16)
    with (tmp_path / "broken" / "metrics.jsonl").open("a") as metrics:
        metrics.write('{"step": 8, "los')
    assert not events.run(lambda: train(made, store, tmp_path / "broken", {}, resume=True))
    assert_equal_runs(tmp_path / "broken", tmp_path / "unbroken", ("last",))


def test_a_finished_run_resumes_without_a_step(pictures: Path, store: Store, events: Events, tmp_path: Path) -> None:
    made = recipe(pictures)
    train(made, store, tmp_path / "run", {})
    shutil.copytree(tmp_path / "run", tmp_path / "before")
    assert not events.run(lambda: train(made, store, tmp_path / "run", {}, resume=True))
    assert "add" not in events.seen
    assert_equal_runs(tmp_path / "run", tmp_path / "before", ("last",))


def summary(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "summary.json").read_text())
    del content["seconds"]
    return content


@pytest.mark.slow
def test_every_stage_of_a_recipe_resumes(pictures: Path, events: Events, tmp_path: Path) -> None:
    made = recipe(
        pictures,
        objective__name="eco",
        data__validation=(str(pictures / "validation"),),
        train__baseline=True,
        train__steps=6,
    )
    assert not events.run(lambda: run_recipe(made, tmp_path / "unbroken"))
    order = list(events.seen)
    adds = [moment for moment, event in enumerate(order) if event == "add"]
    stored = [moment for moment, event in enumerate(order) if event.endswith(".pack")]
    moments = {
        "in the teacher's course": adds[4],
        "between two centroids": stored[3],
        "in the student's course": adds[5 + 4],
        "in the twin's course": adds[5 + 6 + 4],
        "before the summary": order.index("summary.json"),
    }
    assert (len(adds), len(stored)) == (5 + 6 + 6, 2 + 2)
    folder = tmp_path / "broken"
    for stage, moment in moments.items():
        shutil.rmtree(folder, ignore_errors=True)
        assert events.run(lambda: run_recipe(made, folder), stop_at=moment), stage
        assert not events.run(lambda: run_recipe(made, folder, resume=True)), stage
        for run in ("", "teacher", "baseline"):
            assert_equal_runs(folder / run, tmp_path / "unbroken" / run)
        assert summary(folder) == summary(tmp_path / "unbroken"), stage


def test_a_run_that_started_from_a_checkpoint_resumes_without_it(
    pictures: Path, store: Store, events: Events, tmp_path: Path
) -> None:
    start = tmp_path / "start.safetensors"
    save_network(start, EDSR(2, 8, 1))
    made = recipe(pictures, model__start_from=str(start))
    train(made, store, tmp_path / "unbroken", {})
    assert events.run(lambda: train(made, store, tmp_path / "broken", {}), stop_at=16)
    start.unlink()
    assert not events.run(lambda: train(made, store, tmp_path / "broken", {}, resume=True))
    assert_equal_runs(tmp_path / "broken", tmp_path / "unbroken", ("last",))


def test_another_recipe_does_not_continue_a_run(pictures: Path, store: Store, tmp_path: Path) -> None:
    train(recipe(pictures), store, tmp_path / "run", {})
    before = (tmp_path / "run" / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"another optimizer\.epsilon; resume with the same recipe"):
        train(recipe(pictures, optimizer__epsilon=1e-4), store, tmp_path / "run", {}, resume=True)
    with pytest.raises(ValueError, match="already holds a run; continue it with --resume"):
        train(recipe(pictures), store, tmp_path / "run", {})
    assert (tmp_path / "run" / "metrics.jsonl").read_bytes() == before


def test_a_damaged_state_is_refused_by_name(pictures: Path, store: Store, tmp_path: Path) -> None:
    train(recipe(pictures), store, tmp_path / "run", {})
    state = tmp_path / "run" / "checkpoints" / "last.state.pt"
    state.write_bytes(state.read_bytes()[:-500])
    with pytest.raises(ValueError, match=r"last\.state\.pt: the training state is damaged"):
        train(recipe(pictures), store, tmp_path / "run", {}, resume=True)


def last_step(run: Path) -> int:
    """The last whole row of the metrics."""
    text = (run / "metrics.jsonl").read_text() if (run / "metrics.jsonl").exists() else ""
    lines = text.rpartition("\n")[0].splitlines()
    return int(json.loads(lines[-1])["step"]) if lines else 0


KILLED_ON_THE_WAY = """
import json, signal, sys
from eco_fast.cli.main import main
from eco_fast.training import loop

class Step(loop.TrainStep):
    def __call__(self, batch):
        if batch.step == moment:
            print(f"step {moment} begins", flush=True)  # now it is killed, soon
        if moment is not None and batch.step == moment + 40:
            signal.pause()  # but not before the end, however slow whoever kills it is
        return super().__call__(batch)

loop.TrainStep = Step
for moment, command in json.loads(sys.argv[1]):
    if code := main(command):
        raise SystemExit(code)
"""
OPTIMIZERS = ("lamb", "muon")
"""Adam's moments and step are among those of both."""


def commands_in_one_process(commands: Sequence[tuple[int | None, Sequence[str]]]) -> subprocess.Popen[str]:
    """Commands one after the other, in a process of their own; one with a moment waits there to be killed."""
    return subprocess.Popen(
        [sys.executable, "-c", KILLED_ON_THE_WAY, json.dumps(commands)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


@pytest.mark.slow
def test_the_command_killed_at_a_random_moment_resumes_to_the_same_bits(pictures: Path, tmp_path: Path) -> None:
    """The real process, compiled, with the loader's thread, and SIGKILL.

    Each process goes on with what the last one left, and is killed in the run of the next optimizer: it is the starts
    and compilations that take the time.
    """
    save_network(tmp_path / "teacher.safetensors", EDSR(2, 4, 1))
    made = recipe(
        pictures,
        objective__name="eco",
        data__validation=(str(pictures / "validation"),),
        teacher__checkpoint=str(tmp_path / "teacher.safetensors"),
        optimizer__spike_factor=5.0,
        train__steps=200,
        train__log_every=7,
        train__validate_every=90,
        train__checkpoint_every=25,
        train__compile=True,
    )
    (tmp_path / "recipe.toml").write_text(config.dump(made))

    def command(optimizer: str, run: str, *more: str) -> list[str]:
        folder = str(tmp_path / f"{run}-{optimizer}")
        return ["train", str(tmp_path / "recipe.toml"), "--run", folder, "--optimizer.name", optimizer, *more]

    unfinished = [(None, command(optimizer, "unbroken")) for optimizer in OPTIMIZERS]
    said, resumed_at = "", []
    for optimizer in OPTIMIZERS:
        moment = int(np.random.default_rng().integers(60, 150))  # the second checkpoint waits for the first
        with commands_in_one_process([*unfinished, (moment, command(optimizer, "broken"))]) as process:
            assert process.stdout is not None
            while (line := process.stdout.readline()) != f"step {moment} begins\n":
                assert line, f"the run has ended before the kill: {said}"
                said += line
            process.kill()
        assert process.returncode == -signal.SIGKILL
        folder = tmp_path / f"broken-{optimizer}"
        saved = torch.load(folder / "checkpoints" / "last.state.pt", weights_only=True)["step"]
        print(f"{optimizer}: killed after step {last_step(folder)} of 200, with a checkpoint of step {saved}")
        assert 25 <= saved < 200
        resumed_at.append(str(saved))
        unfinished = [(None, command(optimizer, "broken", "--resume"))]
    with commands_in_one_process(unfinished) as process:
        said += process.communicate()[0]
    assert process.returncode == 0, said
    assert re.findall(r"student continues at step (\d+) of 200", said) == resumed_at
    assert "not compiled" not in said
    for optimizer in OPTIMIZERS:
        broken, unbroken = (tmp_path / f"{run}-{optimizer}" for run in ("broken", "unbroken"))
        assert_equal_runs(broken, unbroken)
        assert summary(broken) == summary(unbroken)
