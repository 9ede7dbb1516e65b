"""Which loader a run takes, what it says, and what happens to a run when its images break."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast.config import Config, Data, EdsrModel, Objective, Train
from eco_fast.data.batch import BatchPlanner
from eco_fast.data.images import Pixels
from eco_fast.data.loader import Loader
from eco_fast.data.open_loader import choose_loader
from eco_fast.data.store import Store
from eco_fast.training.checkpoints import Checkpoints
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.state import TrainingState
from eco_fast.training.telemetry import Telemetry
from eco_fast.utils import device
from tests.helpers import idle, wait_until

LACKING = pytest.mark.usefixtures("without_dali")


@pytest.fixture
def without_dali(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)


@pytest.fixture
def hr(tmp_path: Path, photo: Pixels) -> Path:
    folder = tmp_path / "hr"
    folder.mkdir()
    for index in range(2):
        Image.fromarray(photo[:, index * 200 : index * 200 + 201]).save(folder / f"{index}.png")
    return folder


def recipe(hr: Path, objective: Objective | None = None, *, steps: int = 6, **data: Any) -> Config:
    return Config(
        data=Data(train=(str(hr),), patch=8, **data),
        model=EdsrModel(features=4, blocks=1),
        objective=objective or Objective(name="vanilla"),
        train=Train(steps=steps, batch_size=4, device="cpu", compile=False, log_every=2, checkpoint_every=2),
    )


# --- without DALI ---


@LACKING
def test_auto_takes_the_plain_loader_and_says_why(tmp_path: Path, hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_recipe(recipe(hr), tmp_path / "run")
    said = capsys.readouterr().out
    assert "loader: plain, for DALI is not installed (pip install 'eco-fast[dali]')\n" in said


@LACKING
@pytest.mark.parametrize(
    ("data", "named"),
    [
        ({"loader": "dali"}, "data.loader=dali"),
        ({"source": "files"}, "data.source=files"),
        ({"downsample": "dali"}, "data.downsample=dali"),
    ],
)
def test_a_recipe_that_needs_dali_is_refused_before_any_work(
    tmp_path: Path, hr: Path, data: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match="DALI is not installed") as error:
        run_recipe(recipe(hr, **data), tmp_path / "run")
    assert str(error.value) == f"{named} cannot work here: DALI is not installed (pip install 'eco-fast[dali]')"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("data", [{"source": "files"}, {"downsample": "dali"}])
def test_the_plain_loader_refuses_what_dali_does(hr: Path, data: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"is done by DALI, but data\.loader=plain"):
        choose_loader(recipe(hr, loader="plain", **data).data, "cpu")


# --- with it ---


@pytest.fixture
def dali() -> Any:
    return pytest.importorskip("nvidia.dali", reason="DALI is not installed: pip install 'eco-fast[dali]'")


def test_an_old_driver_is_named(dali: Any, hr: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = dali.__cuda_version__ // 1000
    monkeypatch.setattr(device, "cuda_of_driver", lambda: (built - 1) * 1000 + 80)
    said = rf"the GPU's driver is for CUDA {built - 1}, this DALI for CUDA {built}; .*eco-fast\[dali-cuda12\]"
    with pytest.raises(ValueError, match=said):
        choose_loader(recipe(hr, loader="dali").data, "cuda:1")
    assert choose_loader(recipe(hr).data, "cpu")[0] == "dali"  # which needs no driver
    monkeypatch.setattr(device, "cuda_of_driver", lambda: built * 1000)
    assert choose_loader(recipe(hr, loader="dali").data, "cuda")[0] == "dali"


def test_a_gpu_cuts_its_crops_itself(hr: Path) -> None:
    for loader in ("auto", "plain"):
        assert choose_loader(recipe(hr, loader=loader).data, "cuda:1") == ("device", "as a GPU cuts its crops itself")
    needs: list[dict[str, Any]] = [{"loader": "dali"}, {"source": "files"}]
    for data in needs:
        with pytest.raises(ValueError, match=r"data\.residence=device keeps .* is done by DALI; take auto"):
            choose_loader(recipe(hr, residence="device", **data).data, "cuda")
    with pytest.raises(ValueError, match=r"data\.residence=device keeps .* but the device is cpu; take auto"):
        choose_loader(recipe(hr, residence="device").data, "cpu")


@pytest.mark.slow
@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("noise", [0.0, 10.0])
def test_a_run_is_the_same_with_either_loader(
    tmp_path: Path, hr: Path, noise: float, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {}
    ways: dict[str, dict[str, Any]] = {
        "plain": {"loader": "plain"},
        "dali": {},
        "encoded": {"source": "files"},
        "in the graph": {"downsample": "dali"},
    }
    for name, data in ways.items():
        run_recipe(recipe(hr, noise_sigma=noise, **data), tmp_path / name)
        weights[name] = (tmp_path / name / "checkpoints" / "last.safetensors").read_bytes()
        assert f"loader: {'plain, as data.loader says' if name == 'plain' else 'dali'}" in capsys.readouterr().out
    assert len(set(weights.values())) == 1
    assert not (tmp_path / "encoded" / "store").exists()


@pytest.mark.slow
@pytest.mark.usefixtures("dali")
def test_centroids_from_a_folder_or_the_store(tmp_path: Path, hr: Path) -> None:
    """The same centroids, as the store keeps them and as files in another format."""
    objective = Objective(alpha="constant")
    config = recipe(hr, objective)
    config = config.model_copy(update={"teacher": config.teacher.model_copy(update={"steps": 2})})
    run_recipe(config, tmp_path / "packed")
    (made,) = (tmp_path / "packed" / "store" / "centroids").iterdir()
    folder = tmp_path / "centroids"
    folder.mkdir()
    store = Store(made)
    for entry, pixels in zip(store.entries, store.images, strict=True):
        Image.fromarray(pixels).save(folder / f"{Path(entry.name).stem}.bmp")
    parallel = config.data.model_copy(update={"source": "files", "centroids": str(folder)})
    mixed = config.data.model_copy(update={"source": "files"})
    run_recipe(config.model_copy(update={"data": parallel}), tmp_path / "parallel")
    run_recipe(config.model_copy(update={"data": mixed}), tmp_path / "mixed")
    weights = [
        (tmp_path / name / "checkpoints/last.safetensors").read_bytes() for name in ("packed", "parallel", "mixed")
    ]
    assert weights[0] == weights[1] == weights[2]
    assert not (tmp_path / "parallel" / "store").exists()

    Image.fromarray(store.images[0][2:]).save(folder / "0.bmp")
    with pytest.raises(ValueError, match=r"0\.bmp: \d+x\d+ pixels, but the centroid of .*0\.png at x2 has"):
        run_recipe(config.model_copy(update={"data": parallel}), tmp_path / "other")
    (folder / "0.bmp").unlink()
    with pytest.raises(ValueError, match=r"data\.centroids: holds no centroid of .*0\.png"):
        run_recipe(config.model_copy(update={"data": parallel}), tmp_path / "another")
    idle = config.data.model_copy(update={"centroids": str(folder)})
    with pytest.raises(ValueError, match=r"data\.source=store does not read"):
        run_recipe(config.model_copy(update={"data": idle}), tmp_path / "idle")


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("kind", ["transparency", "EXIF orientation", "16 bits"])
def test_files_that_decoders_disagree_about_are_refused(tmp_path: Path, hr: Path, kind: str) -> None:
    with Image.open(hr / "0.png") as file:
        photo = file.copy()
    if kind == "transparency":
        photo.putalpha(100)
        photo.save(hr / "0.png")
    elif kind == "EXIF orientation":
        exif = Image.Exif()
        exif[0x0112] = 6
        photo.save(hr / "0.png", exif=exif)
    else:
        Image.fromarray(np.full((60, 60), 40_000, np.uint16)).save(hr / "0.png")
    with pytest.raises(ValueError, match=rf"0\.png: .*{kind}"):
        run_recipe(recipe(hr, source="files"), tmp_path / "run")


@pytest.mark.usefixtures("dali")
@pytest.mark.parametrize("source", ["store", "files"])
def test_an_image_that_breaks_stops_the_run_and_spares_the_checkpoint(
    tmp_path: Path, hr: Path, source: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, config, folder = Checkpoints.save, recipe(hr, source=source, steps=2000), tmp_path / "run"
    enter, entered = Loader.__enter__, []

    def enter_and_tell(loader: Loader[Any]) -> Loader[Any]:
        entered.append(loader)
        return enter(loader)

    def save_and_break(made: Checkpoints, network: Any, step: int, state: dict[str, Any], *, best: bool) -> None:
        save(made, network, step, state, best=best)
        if step == 4:
            made.wait()
            wait_until(lambda: idle(entered[-1]))  # a file cut short under its reading would be a SIGBUS
            os.truncate(max(folder.glob("store/packs/*")) if source == "store" else hr / "1.png", 1000)

    monkeypatch.setattr(Loader, "__enter__", enter_and_tell)
    monkeypatch.setattr(Checkpoints, "save", save_and_break)
    with pytest.raises(ValueError, match=r"\.pack|1\.png"):
        run_recipe(config, folder)
    state = torch.load(folder / "checkpoints" / "last.state.pt", weights_only=True)
    assert 4 <= state["step"] < 100


def test_waiting_is_warned_of(tmp_path: Path, hr: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Slow:
        waited = 0.0

    for source, advice in (("store", "raise data.prefetch"), ("files", "with data.source=store")):
        loader: Any = Slow()
        run = RunFolder(tmp_path / source, recipe(hr, source=source), resume=False)
        loader.planner = BatchPlanner(run.config, [(40, 40)])
        state = TrainingState(run.config, "cpu", None, "student")
        with Telemetry(run, loader, [], state, "student") as telemetry:
            loader.waited += 1000.0  # far more than has passed
            telemetry.report(1)
            assert advice in capsys.readouterr().out
            telemetry.report(2)
            assert "warning" not in capsys.readouterr().out
        assert json.loads(run.metrics.read_text(encoding="utf-8").splitlines()[0])["step"] == 1
