"""The Python interface against the command line, whose code it is, and against its own promise to be cheap."""

import ast
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import eco_fast
from eco_fast import Scores, SetScores, config, evaluate, load_network, super_resolve, train
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, write_png
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from tests.helpers import write_photos

TINY = {
    "model.features": 4,
    "model.blocks": 1,
    "data.patch": 12,
    "data.loader": "plain",
    "teacher.steps": 2,
    "train.steps": 3,
    "train.batch_size": 2,
    "train.compile": False,
    "train.device": "cpu",
}


@pytest.fixture(scope="module")
def photos(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), photo, 40, 48)


@pytest.fixture(scope="module")
def changes(photos: Path) -> dict[str, Any]:
    return {**TINY, "data.train": [photos / "train"], "data.validation": [str(photos / "HR")], "data.test": ()}


@pytest.fixture
def network() -> EDSR:
    return EDSR(2, 8, 1)


def test_the_import_takes_nothing_along() -> None:
    heavy = ("torch", "numpy", "pydantic", "rich", "eco_fast.config")
    code = f"import sys, eco_fast; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said == "[]\n"


def test_what_mypy_sees_is_what_there_is() -> None:
    tree = ast.parse(Path(eco_fast.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {alias.name: node.module for node in block.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    assert sorted(seen) == sorted(eco_fast.__all__)
    for name, module in seen.items():
        assert module is not None
        assert getattr(eco_fast, name) is getattr(sys.modules[module], name)
        assert name in dir(eco_fast)
    with pytest.raises(AttributeError, match="no attribute 'evaluat'"):
        _ = eco_fast.evaluat


def test_an_array_and_a_tensor_are_the_same_image(network: EDSR, photo: Pixels) -> None:
    lr = photo[:33, :40]
    sr, tensor = super_resolve(network, lr), super_resolve(network, torch.tensor(lr), tile=16)
    assert isinstance(sr, np.ndarray)
    assert sr.shape == (66, 80, 3)
    assert sr.dtype == np.uint8
    assert np.array_equal(sr, tensor)
    with torch.no_grad():
        (whole,) = network(torch.tensor(lr.transpose(2, 0, 1))[None] / 255)
    exact = whole.permute(1, 2, 0).double().numpy() * 255
    assert np.abs(sr - exact.clip(0, 255)).max() <= 0.5 + 1e-3


def test_it_is_made_in_true_float32(network: EDSR, photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    super_resolve(network, photo[:20, :24])
    assert seen == [False]
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("view", ["flipped", "read-only"])
def test_any_array_of_the_right_shape_will_do(network: EDSR, photo: Pixels, view: str) -> None:
    image = photo[:20, :24].copy()
    expected = super_resolve(network, image[::-1].copy() if view == "flipped" else image)
    given = image[::-1] if view == "flipped" else image
    given.flags.writeable = False
    assert np.array_equal(super_resolve(network, given), expected)


@pytest.mark.parametrize(
    ("image", "got"),
    [
        (np.zeros((8, 8, 3)), r"float64 \[8, 8, 3\]"),
        (torch.zeros(8, 8, 3), r"torch.float32 \[8, 8, 3\]"),
        (np.zeros((3, 8, 8), np.uint8), r"uint8 \[3, 8, 8\]"),
        (np.zeros((8, 8), np.uint8), r"uint8 \[8, 8\]"),
        (np.zeros((8, 8, 4), np.uint8), r"uint8 \[8, 8, 4\]"),
        (np.zeros((0, 8, 3), np.uint8), r"uint8 \[0, 8, 3\]"),
    ],
)
def test_other_images_are_refused(network: EDSR, image: Any, got: str) -> None:
    with pytest.raises(ValueError, match=rf"expected an RGB image, uint8 \[h, w, 3\], got {got}"):
        super_resolve(network, image)


def test_an_empty_tile_is_refused(network: EDSR, photo: Pixels) -> None:
    with pytest.raises(ValueError, match="tile: expected at least 1 pixel, got 0"):
        super_resolve(network, photo, tile=0)


def test_a_network_scores_as_its_checkpoint_and_as_the_command_does(
    network: EDSR, photos: Path, tmp_path: Path
) -> None:
    path, folder = tmp_path / "net.safetensors", str(photos / "HR")
    save_network(path, network)
    results = evaluate(load_network(path, "cpu"), photos / "HR")
    assert results == evaluate(str(path), [folder], 2, device="cpu")
    command = ["evaluate", str(path), "--data", folder, "--scale", "2", "--device", "cpu"]
    assert main([*command, "--json", str(tmp_path / "scores.json")]) == 0
    content = json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["sets"][folder]
    assert {name: one.as_dict() for name, one in results[folder].items()} == content["images"]
    assert results[folder].mean.as_dict() == content["mean"]
    assert results[folder].mean.psnr_y == pytest.approx(np.mean([one.psnr_y for one in results[folder].values()]))


def test_the_mean_of_a_set_is_over_its_images() -> None:
    scores = SetScores(a=Scores(psnr_y=30, ssim_y=0.8), b=Scores(psnr_y=33, ssim_y=0.9))
    assert scores.mean.psnr_y == 31.5
    assert scores.mean.ssim_y == pytest.approx(0.85)


def test_another_scale_is_refused_by_name(network: EDSR, photos: Path, tmp_path: Path) -> None:
    save_network(tmp_path / "net.safetensors", network)
    with pytest.raises(ValueError, match=r"^a network for x2, but x3 is asked for$"):
        evaluate(network, photos / "HR", 3)
    with pytest.raises(ValueError, match=r"net\.safetensors: a network for x2, but x3 is asked for$"):
        evaluate(tmp_path / "net.safetensors", photos / "HR", 3, device="cpu")


@pytest.mark.slow
def test_a_training_is_the_commands(changes: dict[str, Any], tmp_path: Path) -> None:
    result = train("quickstart", tmp_path / "ours", changes)
    saved = tmp_path / "ours" / "config.toml"
    assert main(["train", str(saved), "--run", str(tmp_path / "theirs")]) == 0
    theirs = tmp_path / "theirs" / "checkpoints" / "last.safetensors"
    assert result.checkpoint.read_bytes() == theirs.read_bytes()
    summary = json.loads((result.folder / "summary.json").read_text(encoding="utf-8"))
    assert sorted(result.scores) == ["baseline", "bicubic", "student", "teacher"]
    assert {name: scores.as_dict() for name, scores in result.scores.items()} == {
        name: summary[name] for name in result.scores
    }
    assert result.seconds == summary["seconds"]
    network = load_network(result.checkpoint, "cpu")
    folder = changes["data.validation"][0]
    assert evaluate(network, folder)[folder].mean.psnr_y == pytest.approx(result.scores["student"].psnr_y, abs=1e-9)

    before = result.checkpoint.stat().st_mtime_ns
    again = train(config.load(str(saved)), result.folder, resume=True)
    assert again.scores == result.scores
    assert again.checkpoint.stat().st_mtime_ns == before
    with pytest.raises(ValueError, match="ours: already holds a run"):
        train(saved, result.folder)
    with pytest.raises(ValueError, match=r"ours: holds a run with another data\.patch"):
        train(saved, result.folder, {"data.patch": 10}, resume=True)


def test_a_training_without_images_to_score_has_no_scores(changes: dict[str, Any], tmp_path: Path) -> None:
    recipe = config.changed(config.load("quickstart"), ["train.baseline=false"], "test")
    result = train(recipe, tmp_path / "run", {**changes, "data.validation": [], "objective.name": "vanilla"})
    assert result.scores == {}
    assert result.checkpoint.is_file()


def test_equal_images_score_infinity(changes: dict[str, Any], tmp_path: Path) -> None:
    write_png(tmp_path / "HR" / "grey.png", np.full((40, 40, 3), 128, np.uint8))
    result = train("quickstart", tmp_path / "run", {**changes, "data.test": [tmp_path / "HR"]})
    assert result.scores["bicubic"].psnr_y == math.inf


def test_an_unknown_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"unknown key train\.step \(did you mean train\.steps"):
        train("quickstart", tmp_path, {"train.step": 3})
