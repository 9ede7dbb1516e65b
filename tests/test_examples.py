"""Every example, run on small images for a few steps."""

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eco_fast import load_network, super_resolve, train
from eco_fast.data.images import Pixels, read_image
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from tests.helpers import write_photos

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(scope="module")
def photos(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_photos(tmp_path_factory.mktemp("photos"), photo, 72, 72)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    save_network(tmp_path / "net.safetensors", EDSR(2, 8, 1))
    return tmp_path / "net.safetensors"


def example(name: str) -> Callable[..., Any]:
    main: Callable[..., Any] = runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    return main


def test_there_is_a_test_of_every_example() -> None:
    names = {str(path.relative_to(EXAMPLES)) for path in EXAMPLES.rglob("*.py")}
    tested = {"upscale_array.py", "score_folder.py", "train_on_folder.py", "ops_in_plain_loop.py"}
    assert names == tested | {"own_network/residual_net.py"}


def test_upscale_array(checkpoint: Path, photos: Path, tmp_path: Path) -> None:
    example("upscale_array")(str(checkpoint), str(photos / "HR" / "cat.png"), str(tmp_path / "sr.png"))
    expected = super_resolve(load_network(checkpoint), read_image(photos / "HR" / "cat.png"))
    assert np.array_equal(read_image(tmp_path / "sr.png"), expected)


def test_score_folder(checkpoint: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    example("score_folder")(str(checkpoint), str(photos / "HR"), str(photos / "train"))
    lines = [line.split(": ")[0] for line in capsys.readouterr().out.splitlines()]
    assert lines == [str(photos / "HR"), str(photos / "train")]


@pytest.mark.slow
def test_train_on_folder(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [str(photos / "train"), str(photos / "HR"), str(tmp_path / "run")]
    weights = []
    for _ in range(2):  # the second time everything is there
        example("train_on_folder")(*folders, "2")
        weights.append((tmp_path / "run" / "checkpoints" / "last.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert capsys.readouterr().out.endswith("/checkpoints/last.safetensors\n")


def test_the_ops_train_a_network_in_a_plain_loop() -> None:
    losses = example("ops_in_plain_loop")(60)
    assert np.mean(losses[-10:]) < np.mean(losses[:10]) / 3


def test_own_network(photos: Path, photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLES / "own_network"))
    changes = {"data.train": [photos / "train"], "data.validation": [photos / "HR"], "data.test": []}
    changes |= {"train.steps": 2, "teacher.steps": 2, "train.baseline": False}  # type: ignore[dict-item]
    result = train(EXAMPLES / "own_network" / "residual_net_x2.toml", tmp_path / "run", changes)
    assert set(result.scores) == {"bicubic", "teacher", "student"}
    network = load_network(result.checkpoint, "cpu")
    assert network.hyperparameters == {"arguments": {"features": 24, "layers": 3}}
    lr = photo[:40, :50]
    assert np.array_equal(super_resolve(network, lr, tile=8), super_resolve(network, lr))  # its halo is right
