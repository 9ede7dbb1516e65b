"""What a run depends on is compared when it goes on; what changes no result may differ, and is said."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast import config
from eco_fast.config import Config
from eco_fast.config.resuming import MAY_DIFFER, differing
from eco_fast.data.encoded import EncodedImages
from eco_fast.data.folders import find_images
from eco_fast.data.images import Pixels, write_png
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from eco_fast.training.pinned import contents_of, contents_of_file, pin, pin_sets
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.run_folder import RunFolder, check_folder, other_bits

CUTS = ((60, 120), (150, 200), (90, 160))


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder holds images, a teacher, and weights to start from."""
    monkeypatch.chdir(tmp_path)
    for index, (top, left) in enumerate(CUTS):
        write_png(Path(f"hr/{index}.png"), photo[top : top + 40, left : left + 40])
    write_png(Path("validation/eye.png"), photo[70:98, 150:180])
    for seed, name in enumerate(("teacher", "start")):
        torch.manual_seed(seed)
        save_network(Path(f"{name}.safetensors"), EDSR(2, 8, 1))


def recipe(*overrides: str) -> Config:
    values = {
        "data": {"train": ["hr"], "validation": ["validation"], "patch": 6, "loader": "plain"},
        "model": {"features": 8, "blocks": 1, "start_from": "start.safetensors"},
        "teacher": {"checkpoint": "teacher.safetensors"},
        "train": {
            "steps": 4,
            "batch_size": 2,
            "log_every": 1,
            "checkpoint_every": 2,
            "compile": False,
            "device": "cpu",
        },
    }
    return config.changed(config.validate(values, "test"), overrides, "test")


@pytest.fixture
def stopped(monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run that was killed in its last step."""
    append = RunFolder.append

    def killed(run: RunFolder, row: dict[str, Any]) -> None:
        append(run, row)
        if row["step"] == 3:
            raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "append", killed)
        with pytest.raises(Stopped):
            run_recipe(recipe(), Path("run"))
    return Path("run")


class Stopped(BaseException):
    """As sudden as a kill."""


def replaced(path: str) -> None:
    """Other pixels of the same size under the name, as a repaired file has."""
    pixels = np.full((40, 40, 3), 99, np.uint8) if path.startswith("hr") else np.full((28, 30, 3), 99, np.uint8)
    write_png(Path(path), pixels)


def turned(path: str) -> None:
    """The same compressed data, upside down by its EXIF orientation."""
    with Image.open(path) as image:
        exif = image.getexif()
        exif[0x0112] = 3
        image.save(path, exif=exif)


CHANGES: dict[str, tuple[Callable[[], object], str]] = {
    "an image is replaced": (lambda: replaced("hr/1.png"), "the training images have changed .*: hr/1.png is another"),
    "an image is new": (lambda: shutil.copy("hr/1.png", "hr/00.png"), r"hr/00.png is new \(3 then, 4 now\)"),
    "an image is renamed": (lambda: Path("hr/1.png").rename("hr/9.png"), r"hr/9.png is new \(3 then, 3 now\)"),
    "the validation has one image more": (
        lambda: write_png(Path("validation/nose.png"), np.zeros((28, 30, 3), np.uint8)),
        r"the validation images have changed since .*: validation/nose.png is new \(1 then, 2 now\)",
    ),
    "an image is turned, without a pixel in its data being another": (
        lambda: turned("hr/2.png"),
        "the training images have changed since the run began: hr/2.png is another",
    ),
    "two images are exchanged": (
        lambda: [
            Path(old).rename(new) for old, new in (("hr/0.png", "x"), ("hr/2.png", "hr/0.png"), ("x", "hr/2.png"))
        ],
        "the training images have changed since the run began: hr/0.png is another",
    ),
    "the validation is another": (
        lambda: replaced("validation/eye.png"),
        "the validation images have changed since the run began: validation/eye.png is another",
    ),
    "the teacher is another": (
        lambda: shutil.copy("start.safetensors", "teacher.safetensors"),
        "the weights of the teacher have changed since",
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_run_does_not_go_on_with_something_else(change: str, stopped: Path) -> None:
    alter, words = CHANGES[change]
    before = {name: (stopped / name).read_bytes() for name in ("metrics.jsonl", "checkpoints/last.state.pt")}
    alter()
    with pytest.raises(ValueError, match=words):
        run_recipe(recipe(), stopped, resume=True)
    assert {name: (stopped / name).read_bytes() for name in before} == before


@pytest.mark.parametrize("key", ["seed=1", "objective.loss=l2"])
def test_a_recipe_that_is_not_its_checkpoints_does_not_go_on(key: str, stopped: Path) -> None:
    """As a hand or a disk may change the recipe in the run's folder."""
    other = recipe(key)
    (stopped / "config.toml").write_text(config.dump(other), encoding="utf-8")
    before = (stopped / "metrics.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"checkpoints: its newest state is of a run with another {key[:4]}"):
        run_recipe(other, stopped, resume=True)
    assert (stopped / "metrics.jsonl").read_bytes() == before


def test_a_run_whose_recipe_is_lost_does_not_go_on_as_another(stopped: Path) -> None:
    (stopped / "config.toml").write_bytes(b"")
    with pytest.raises(ValueError, match=r"^run/config\.toml: damaged, it is empty; restore it"):
        run_recipe(recipe(), stopped, resume=True)
    assert (stopped / "config.toml").read_bytes() == b""


@pytest.mark.slow
def test_moved_data_and_other_ways_to_the_same_result_go_on_to_the_same_weights(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_recipe(recipe(), Path("unbroken"))
    Path("hr").rename("node_local")
    Path("validation").rename("elsewhere")
    Path("teacher.safetensors").rename("moved.safetensors")
    Path("start.safetensors").unlink()  # the run has a state of its own
    capsys.readouterr()
    run_recipe(
        recipe(
            *('data.train=["node_local"]', 'data.validation=["elsewhere"]', "teacher.checkpoint=moved.safetensors"),
            *("data.prefetch=5", "train.timeout=60", "train.log_every=3", "train.checkpoint_every=1"),
        ),
        stopped,
        resume=True,
    )
    said = capsys.readouterr().out
    assert 'run: data.train was ["hr"] and is ["node_local"] now: what lies there must be the same' in said
    assert "run: data.prefetch was 2 and is 5 now: no sample and no weight changes" in said
    weights = "checkpoints/last.safetensors"
    assert (stopped / weights).read_bytes() == Path("unbroken", weights).read_bytes()
    starts = json.loads((stopped / "environment.json").read_text())
    assert [len(start["changed"]) for start in starts] == [0, 7]


def test_files_are_compared_by_what_is_in_them() -> None:
    """Also where size and name stay, and where another set is monitored."""
    with RunFolder(Path("run"), recipe(), resume=False) as run:
        Image.new("RGB", (40, 40)).save("hr/2.bmp")
        pin(run.folder, "training images", contents_of(EncodedImages(find_images(["hr"]))))
        content = bytearray(Path("hr/2.bmp").read_bytes())
        content[-20] ^= 1
        Path("hr/2.bmp").write_bytes(content)
        with pytest.raises(ValueError, match=r"hr/2\.bmp is another"):
            pin(run.folder, "training images", contents_of(EncodedImages(find_images(["hr"]))))
        images = {"a/0.png": np.zeros((4, 6, 3), np.uint8)}
        pin_sets(run.folder, images, {"Set5": images})
        pin_sets(run.folder, images, {"Set14": images})
        with pytest.raises(ValueError, match=r"images of Set5 have changed since the run began: a/0\.png"):
            pin_sets(run.folder, images, {"Set5": {"a/0.png": np.zeros((6, 4, 3), np.uint8)}})
        pin(run.folder, "weights", contents_of_file(Path("start.safetensors")))
        with pytest.raises(ValueError, match="restore them, or begin a new run with --run"):
            pin(run.folder, "weights", contents_of_file(Path("teacher.safetensors")))


def test_every_key_decides_the_result_or_may_differ() -> None:
    made = recipe()
    assert all(key.split(".")[-1] for key in MAY_DIFFER)
    for key in MAY_DIFFER:  # no key of the table is misspelt
        values = made.model_dump()
        for part in key.split("."):
            values = values[part]
    for override in ("seed=1", "train.steps=9", "train.batch_size=3", "objective.loss=l2", "data.patch=7", "scale=3"):
        assert differing(made, config.changed(made, [override], "test"))[0] == [override.partition("=")[0]]
    slower = config.changed(made, ["optimizer.learning_rate=1e-9"], "test")
    assert differing(made, slower)[0] == []
    assert differing(made, slower, same_course=True)[0] == ["optimizer.learning_rate"]


@pytest.mark.parametrize("name", ["device", "threads", "processes", "torch"])
def test_what_changes_the_last_bits_is_warned_of(name: str) -> None:
    start = {"device": "a CPU", "threads": 2, "processes": 1, "packages": {"torch": "2.11", "numpy": "2.3"}}
    assert other_bits(start, start) == []
    now = {**start, "packages": {**start["packages"], "torch": "2.12"}} if name == "torch" else {**start, name: 7}  # type: ignore[dict-item]
    (line,) = other_bits(start, now)
    assert line.startswith(f"warning: {name} was ")
    assert line.endswith("the same result up to rounding, not bit for bit")


def test_a_folder_that_is_being_claimed_is_no_strangers(tmp_path: Path) -> None:
    """Half a recipe, which another start writes this moment, is not taken for somebody's files."""
    made, folder = config.validate({}, "test"), tmp_path / "claimed"
    folder.mkdir()
    (folder / ".lock").touch()
    (folder / ".config.toml.17.partial").touch()
    assert check_folder(folder, made, resume=False) == []
    (folder / "thesis.tex").touch()
    with pytest.raises(ValueError, match="not empty and not a run"):
        check_folder(folder, made, resume=False)
