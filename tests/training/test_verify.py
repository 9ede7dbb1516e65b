"""An audit proves runs that are left alone, and finds what was changed in others; it changes nothing itself.

`python -m bench.tamper` does all the tamperings; these are some of each kind.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from bench.tamper import EDSR_ECO, UNTOUCHED, inside, make_run, refuted, verdict
from bench.tampering import RUN, STATES, TAMPERINGS, edit_rows, train_again
from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.config import Config
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.telemetry import Telemetry
from eco_fast.training.verify.audited import KeptTraining, draw
from eco_fast.training.verify.certificate import certificate_path, fitting_certificate, read_certificate
from eco_fast.training.verify.tolerance import WEIGHTS
from eco_fast.training.verify.verify import verify
from tests.helpers import complaint

SOME = (
    "weight of a checkpoint",
    "weight, with the hash of before",
    "second moment",
    "counter of skipped steps",
    "seed",
    "learning rate in the kept recipe",
    "recipe of one checkpoint",
    "pixel of a training image",
    "centroid swapped",
    "step made twice",
    "checkpoint under another step's name",
    "validation row",
    "rows removed",
    "published weight",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run of EDSR and eco, and what it was trained on."""
    folder = tmp_path_factory.mktemp("base")
    with inside(folder):
        make_run(**EDSR_ECO)
    return folder


@pytest.fixture
def here(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, which is the current folder."""
    shutil.copytree(base, tmp_path / "copy")
    monkeypatch.chdir(tmp_path / "copy")
    return tmp_path / "copy"


def hashes(folder: Path) -> dict[str, tuple[int, str]]:
    return {
        str(path): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in [folder, *sorted(folder.rglob("*"))]
    }


def test_a_run_that_was_left_alone_is_proven_and_not_touched(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = hashes(RUN)
    assert main(["verify", "run"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert hashes(RUN) == before
    assert said[0].startswith("run: repeats 6 of 6 steps, 3 of 3 stretches, of --choice ")
    assert "centroids: 2 of 2 repeated, up to 0 grey levels off" in said
    assert [line for line in said if line.endswith(": equal to the bit")] == [
        f"student, steps {begin} to {end}: equal to the bit" for begin, end in pairwise((0, 2, 4, 6))
    ]
    assert said[-2:] == ["run: proven", f"certificate: {here / 'run.certificate.json'}"]


@pytest.mark.parametrize("kind", ["RCAN, vanilla", "SwinIR, eco, validated by the clock"])
def test_so_are_runs_of_other_families(kind: str, tmp_path: Path) -> None:
    with inside(tmp_path):
        make_run(**UNTOUCHED[kind])
        assert verdict() == (True, "")


@pytest.mark.slow
def test_so_are_its_teacher_and_its_baseline(tmp_path: Path) -> None:
    with inside(tmp_path):
        make_run(**UNTOUCHED["EDSR, eco, teacher and baseline"])
        assert verdict() == (True, "")
        made = read_certificate(certificate_path(RUN))
        assert made["steps"] == {"repeated": 3 + 6 + 6, "of": 15}
        for label, end in (("baseline", 4), ("teacher", 3)):
            state = RUN / label / f"checkpoints/step-{end:08d}.state.pt"
            shutil.copyfile(RUN / "checkpoints/step-00000004.state.pt", state)
            proven, reason = verdict()
            assert not proven
            assert reason.startswith(f"{label}, steps 2 to {end}: ")


@pytest.mark.parametrize("kind", SOME)
def test_what_was_tampered_with_is_found(kind: str, base: Path, tmp_path: Path) -> None:
    assert refuted(base, kind, tmp_path / "copy")


def test_there_are_enough_tamperings() -> None:
    assert len(TAMPERINGS) >= 20
    assert set(SOME) <= TAMPERINGS.keys()


@pytest.mark.usefixtures("here")
def test_a_refuted_run_ends_with_code_1_and_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    TAMPERINGS["loss row"].do()
    assert main(["verify", "run", "--out", "found.json"]) == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("run: refuted"))
    assert line.startswith("run: refuted: student, steps 0 to 2: metrics.jsonl: loss of step 1 is 1.0, repeated ")
    made = read_certificate(Path("found.json"))
    assert made["result"] == "refuted"
    assert line.endswith(made["reason"])
    assert made["steps"] == {"repeated": 0, "of": 6}


def test_what_is_drawn() -> None:
    recipe = Config()
    often = KeptTraining("student", Path(), recipe, {step: (f"step-{step:08d}",) for step in range(100, 3001, 100)})
    ends = KeptTraining("teacher", Path(), recipe, dict.fromkeys((2800, 2900, 3000), ("last",)))
    assert [(one.begin, one.end) for one in ends.stretches()] == [(0, 2800), (2800, 2900), (2900, 3000)]
    pool = [*ends.stretches(), *often.stretches()]
    assert draw([ends, often], None, 0) == draw([ends, often], 33, 0) == pool
    drawn = [draw([ends, often], 5, seed) for seed in range(200)]
    assert {len(one) for one in drawn} == {5}
    assert all(one[-1] == often.stretches()[-1] for one in drawn)
    assert all(one == sorted(one, key=pool.index) for one in drawn)
    assert {stretch.steps for one in drawn for stretch in one} == {100}, "the long one costs all that it would save"
    assert len({stretch for one in drawn for stretch in map(pool.index, one)}) == len(pool) - 1
    assert draw([ends, often], 5, 7) == draw([ends, often], 5, 7)


@pytest.mark.usefixtures("here")
def test_few_stretches_are_few_steps() -> None:
    assert verify(RUN, stretches=1, seed=3)
    made = read_certificate(certificate_path(RUN))
    assert made["stretches"] == {
        "repeated": [{"training": "student", "begin": 4, "end": 6, "distance": 0.0}],
        "of": 3,
    }
    assert made["choice"] == {"seed": 3, "stretches": 1}


# --- another machine ---


@pytest.mark.usefixtures("here")
def test_another_split_of_the_batch_is_equal_up_to_rounding(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["verify", "run", "--train.micro_batch", "1"]) == 0
    said = capsys.readouterr().out
    assert said.count("equal up to rounding, the weights ") == 3
    made = read_certificate(certificate_path(RUN))
    assert made["tolerance"]["weights"] == WEIGHTS
    assert all(0 < one["distance"] < WEIGHTS for one in made["stretches"]["repeated"])
    train_again(0)
    assert main(["verify", "run", "--train.micro_batch", "1"]) == 1
    assert "which is more than rounding makes (train.micro_batch is not what it was)" in capsys.readouterr().out


@pytest.mark.parametrize(("key", "factor"), [("loss", 1.02), ("psnr_y", 1.01), ("learning_rate", 1.0001)])
@pytest.mark.usefixtures("here")
def test_rows_are_held_to_a_tolerance_too(key: str, factor: float) -> None:
    edit_rows(lambda rows: [row.update({key: row[key] * factor}) for row in rows if key in row])
    assert not verify(RUN, overrides={"train.micro_batch": 1})


@pytest.mark.usefixtures("here")
def test_bits_that_are_equal_are_equal_whatever_the_machine_was() -> None:
    conditions = RUN / "environment.json"
    starts = json.loads(conditions.read_text())
    conditions.write_text(json.dumps([{**starts[0], "device": "another"}]))
    assert verify(RUN, stretches=1)
    assert "tolerance" not in read_certificate(certificate_path(RUN))


@pytest.mark.usefixtures("here")
def test_it_computes_with_as_many_threads_as_the_run() -> None:
    conditions = RUN / "environment.json"
    starts = json.loads(conditions.read_text())
    conditions.write_text(json.dumps([{**starts[0], "threads": 2}]))
    threads = torch.get_num_threads()
    assert verify(RUN, stretches=1)
    assert read_certificate(certificate_path(RUN))["conditions"]["threads"] == 2
    assert torch.get_num_threads() == threads


# --- runs with a history ---


class Stopped(BaseException):
    """As sudden as a kill."""


ADD = Telemetry.add


def stopping_at(step: int) -> Callable[[Telemetry, int], None]:
    def add(self: Telemetry, done: int) -> None:
        if done == step:
            raise Stopped
        ADD(self, done)

    return add


@pytest.mark.usefixtures("here")
def test_a_run_that_was_stopped_and_steered_is_proven(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recipe = config.load(str(RUN / "config.toml"))
    shutil.rmtree(RUN)
    monkeypatch.setattr(Telemetry, "add", stopping_at(4))
    with pytest.raises(Stopped):
        run_recipe(recipe, RUN)
    monkeypatch.setattr(Telemetry, "add", ADD)
    steered = config.changed(recipe, {"optimizer.learning_rate": 2e-3}, "it")
    run_recipe(steered, RUN, resume=True)
    assert verify(RUN)


# --- certificates ---


def test_a_certificate_fits_what_it_is_of(here: Path) -> None:
    assert fitting_certificate(RUN) is None
    assert verify(RUN, stretches=1)
    path = certificate_path(RUN)
    assert fitting_certificate(RUN) == path
    made = json.loads(path.read_text())
    hashed = hashlib.sha256(json.dumps({k: v for k, v in made.items() if k != "sha256"}, sort_keys=True).encode())
    assert made["sha256"] == hashed.hexdigest()
    weights = STATES / "last.safetensors"
    assert made["networks"]["last"]["sha256"] == hashlib.sha256(weights.read_bytes()).hexdigest()
    assert str(here) not in path.read_text()
    path.write_text(path.read_text().replace('"begin": 4', '"begin": 0'))
    with pytest.raises(ValueError, match="not as eco-fast verify wrote it"):
        fitting_certificate(RUN)
    path.unlink()
    assert verify(RUN, stretches=1)
    TAMPERINGS["learning rate in the kept recipe"].do()
    with pytest.raises(ValueError, match="of another recipe than the run's now"):
        fitting_certificate(RUN)
    TAMPERINGS["weight of the last weights"].do()
    with pytest.raises(ValueError, match="of other weights than the run's last ones now"):
        fitting_certificate(RUN)
    assert not verify(RUN)
    with pytest.raises(ValueError, match="it says that the run is refuted"):
        fitting_certificate(RUN)


# --- bad input ---


@pytest.mark.usefixtures("here")
def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    assert complaint(capsys, "verify", "images").startswith(
        "images: expected a run folder, but it holds no config.toml"
    )
    said = complaint(capsys, "verify", "run", "--seed", "3")
    assert said == "--seed: verify repeats the run's own recipe, unlike this; leave it out"
    assert "expected a number from 1, or all, got '0'" in complaint(capsys, "verify", "run", "--stretches", "0")
    Path("taken.json").write_text("{}")
    said = complaint(capsys, "verify", "run", "--out", "taken.json")
    assert said == "taken.json: exists, and is no certificate; name another place with --out"
    assert "name another place with --out" in complaint(capsys, "verify", "run", "--out", "nowhere/it.json")
    assert "gone" in complaint(capsys, "verify", "run", "--data.validation", "gone")
    assert "gone: not a store" in complaint(capsys, "verify", "run", "--data.store", "gone")
    for state in STATES.glob("*.pt"):
        state.unlink()
    assert "last.state.pt: the training state is missing" in complaint(capsys, "verify", "run")
    assert not Path("run.certificate.json").exists()


@pytest.mark.usefixtures("here")
def test_a_run_that_is_in_use_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with RunFolder(RUN, config.load(str(RUN / "config.toml")), resume=True):
        said = complaint(capsys, "verify", "run")
    assert said.startswith("run: in use by process ")
    assert said.endswith("; verify it when that has ended, or stop it")


@pytest.mark.usefixtures("here")
def test_data_may_have_moved() -> None:
    for old, new in (("run/store", "elsewhere"), ("validation", "others"), ("teacher.safetensors", "teacher.st")):
        shutil.move(old, new)
    shutil.move("teacher.st", "t.safetensors")
    moved = {"data.store": "elsewhere", "data.validation": ["others"], "teacher.checkpoint": "t.safetensors"}
    assert verify(RUN, stretches=1, overrides=moved)
