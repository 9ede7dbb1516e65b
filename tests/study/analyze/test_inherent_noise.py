"""Noise and targets of images: real runs of tiny networks, and a set of images whose posterior is known."""

import csv
import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.data.resize import downsample_image, to_tensor
from eco_fast.evaluation.metrics import luma, psnr
from eco_fast.inference.upscale import super_resolve
from eco_fast.models import load_network
from eco_fast.study.analyze.inherent_noise import noise_of, numbers
from eco_fast.training.pipeline import run_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def images(photo: Pixels, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    write_png(folder / "train" / "eyes.png", photo[60:170, 120:239])
    write_png(folder / "new" / "fur.png", photo[150:250, 200:321])
    return folder


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of objective residual."""
    folder = tmp_path_factory.mktemp("runs") / "residual"
    values: dict[str, Any] = {
        "data": {"train": [str(images / "train")], "patch": 8},
        "model": {"features": 8, "blocks": 1},
        "teacher": {"steps": 30},
        "objective": {"name": "residual"},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"steps": 30, "batch_size": 4, "compile": False, "device": "cpu"},
    }
    run_recipe(config.validate(values, "test"), folder)
    return folder


def test_maps_are_what_teacher_and_network_make(run: Path, images: Path, tmp_path: Path) -> None:
    assert main(["analyze", "noise", str(run), str(images / "new"), "--out", str(tmp_path)]) == 0
    with np.load(tmp_path / "noise_new_fur.npz") as maps:
        noise, regressed = maps["noise"], maps["regressed"]
    hr = read_image(images / "new" / "fur.png")[:100, :120]
    lr = downsample_image(hr, 2, "uint8")
    sr = super_resolve(load_network(run / "teacher" / "checkpoints" / "last.safetensors", "cpu"), lr)
    assert np.array_equal(noise, hr.astype(int) - sr.astype(int))
    network = load_network(run / "checkpoints" / "last.safetensors", "cpu")
    made = network(torch.from_numpy(lr / np.float32(255)).permute(2, 0, 1)[None])[0].permute(1, 2, 0).numpy()
    np.testing.assert_allclose(regressed, made * 255 - 127.5, rtol=0, atol=1e-3)
    (row,) = csv.DictReader((tmp_path / "noise.csv").read_text().splitlines())
    assert float(row["noise_rms"]) == pytest.approx(np.sqrt(np.mean(noise.astype(float) ** 2)), rel=1e-5)
    assert float(row["correlation"]) == pytest.approx(
        np.corrcoef(noise.ravel().astype(float), regressed.ravel().astype(float))[0, 1], abs=1e-5
    )
    with Image.open(tmp_path / "noise_new_fur.png") as figure:
        assert figure.width > 1000


def test_a_run_that_names_a_store_alone_shows_its_images(run: Path, images: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "run")
    recipe = config.load(str(run / "config.toml"), ["data.train=[]", f"data.store={run / 'store'}"])
    (tmp_path / "run" / "config.toml").write_text(config.dump(recipe))
    assert main(["analyze", "noise", str(tmp_path / "run"), "--out", str(tmp_path)]) == 0
    hr = read_image(images / "train" / "eyes.png")[:110, :118]
    sr = super_resolve(
        load_network(run / "teacher" / "checkpoints" / "last.safetensors", "cpu"), downsample_image(hr, 2)
    )
    with np.load(tmp_path / "noise_train_eyes.npz") as maps:
        assert np.array_equal(maps["noise"], hr.astype(int) - sr.astype(int))


def test_a_network_of_another_objective_makes_no_residuals(run: Path, tmp_path: Path, capsys: Any) -> None:
    text = (run / "config.toml").read_text()
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.toml").write_text(
        text.replace('name = "residual"', 'name = "eco"').replace('store = ""', f'store = "{run / "store"}"')
    )
    assert main(["analyze", "noise", str(tmp_path / "run"), "--out", str(tmp_path)]) == 2
    assert "expected a network that predicts residuals, but its objective is eco" in capsys.readouterr().err


def test_the_mean_noise_of_an_ideal_teacher_is_zero_where_the_posterior_is_known() -> None:
    """Each LR has two HR images, which differ by a pattern that downsampling takes out; their mean is its centroid.

    So the best regression of the noise from LR is 0, while no image's own noise is: the point of Appendix B.
    """
    generator = np.random.default_rng(0)
    for grey, amplitude in ((60, 20), (128, 40), (200, 30)):
        ideal = np.full((64, 80, 3), grey, np.uint8)
        pattern = np.rint(amplitude * invisible_pattern()).astype(np.int64)[..., None]
        possible = [(ideal + sign * pattern).astype(np.uint8) for sign in (1, -1)]
        for one in possible:
            assert np.array_equal(downsample_image(one, 2, "uint8"), downsample_image(ideal, 2, "uint8"))
        noises = np.stack([noise_of(possible[one], ideal) for one in generator.integers(0, 2, 200)])
        found = [numbers({"noise": one, "regressed": noises.mean(axis=0)}) for one in noises]
        size = np.sqrt(np.mean(pattern.astype(float) ** 2))
        assert all(one["noise_rms"] == pytest.approx(size) for one in found)
        assert size > amplitude / 4
        assert found[0]["regressed_rms"] <= 4 / np.sqrt(200) * size, "beyond four standard errors of 200 fair signs"
        assert abs(found[0]["noise_mean"]) < 0.1


def test_least_squares_finds_nothing_of_the_noise_in_lr_though_hr_holds_all_of_it(photo: Pixels) -> None:
    """Textured images with a checkerboard of either sign on them, which no LR shows away from the borders."""
    generator = np.random.default_rng(1)
    pattern = 20 * (1 - 2 * (np.indices((24, 24)).sum(axis=0) % 2))[..., None]
    noises, patches = [], {"lr": [], "hr": []}  # type: ignore[var-annotated]
    for sign in generator.choice((-1, 1), 400):
        top, left = generator.integers(0, 220, 2)
        ideal = 40 + photo[top : top + 24, left : left + 24] // 2
        hr = (ideal + sign * pattern).astype(np.uint8)
        lr = downsample_image(hr, 2)
        assert np.array_equal(lr[2:-2, 2:-2], downsample_image(ideal, 2)[2:-2, 2:-2])
        noises.append(noise_of(hr, ideal)[12, 12, 1])
        for name, image, at in (("lr", lr, 6), ("hr", hr, 12)):
            patches[name].append(np.append(image[at - 1 : at + 2, at - 1 : at + 2, 1].astype(float), 1))
    found = {}
    for name, values in patches.items():
        regression, *_ = np.linalg.lstsq(np.stack(values), np.array(noises), rcond=None)
        found[name] = np.mean((np.stack(values) @ regression) ** 2) / np.mean(np.square(noises))
    assert np.abs(noises).min() == 20, "no image is without noise"
    assert found["lr"] < (10 + 4 * np.sqrt(20)) / 400, "beyond four standard deviations of ten fitted numbers"
    assert found["hr"] > 0.9


def invisible_pattern() -> Any:
    """Alternating signs, which a symmetric filter at half steps takes out; they fade so slowly that it still does."""
    fade = [np.sin(np.pi * (np.arange(size) + 0.5) / size) ** 2 for size in (64, 80)]
    rows, columns = (one * (-1.0) ** np.arange(len(one)) for one in fade)
    return np.outer(rows, columns)


def test_targets_are_equation_14(run: Path, images: Path, tmp_path: Path) -> None:
    alphas = ("0", "0.3", "1")
    source = str(images / "new" / "fur.png")
    assert main(["analyze", "targets", str(run), source, "--out", str(tmp_path), "--alphas", *alphas]) == 0
    rows = list(csv.DictReader((tmp_path / "targets.csv").read_text().splitlines()))
    hr = read_image(images / "new" / "fur.png")[:100, :120]
    lr = downsample_image(hr, 2, "uint8")
    sr = super_resolve(load_network(run / "teacher" / "checkpoints" / "last.safetensors", "cpu"), lr)
    blended = 0.3 * hr.astype(float) + 0.7 * sr.astype(float)
    crop = read_image(tmp_path / "new_fur-target-0.3.png")
    places = itertools.product(range(0, 100 - 95, 2), range(0, 120 - 95, 2))
    assert any(np.array_equal(crop, np.rint(blended[y : y + 96, x : x + 96])) for y, x in places)
    inputs = 0.3 * lr.astype(float) + 0.7 * downsample_image(sr, 2, "uint8").astype(float)
    crop = read_image(tmp_path / "new_fur-input-0.3.png")
    places = itertools.product(range(50 - 47), range(60 - 47))
    assert any(np.array_equal(crop, np.rint(inputs[y : y + 48, x : x + 48])) for y, x in places)
    assert [row["alpha"] for row in rows] == ["0.0", "0.3", "1.0"]
    score = psnr(*(luma(to_tensor(image)) for image in (sr, hr))).item()
    assert float(rows[0]["psnr_y"]) == pytest.approx(score)
    assert float(rows[1]["psnr_y"]) == pytest.approx(score - 20 * np.log10(0.7))
    assert float(rows[2]["psnr_y"]) == float("inf")


def test_a_recipe_with_its_teacher_shows_the_targets_of_a_run_to_be(
    run: Path, images: Path, tmp_path: Path, capsys: Any
) -> None:
    teacher = run / "teacher" / "checkpoints" / "last.safetensors"
    recipe, fur = "edsr_baseline_x2_eco", str(images / "new" / "fur.png")
    overrides = ["--teacher.checkpoint", str(teacher), "--train.device", "cpu"]
    for name, arguments in (("run", [str(run), fur]), ("recipe", [recipe, fur, *overrides])):
        assert main(["analyze", "targets", *arguments, "--out", str(tmp_path / name), "--alphas", "0"]) == 0
    assert (tmp_path / "run" / "targets.csv").read_text() == (tmp_path / "recipe" / "targets.csv").read_text()
    for arguments, message in (
        ([recipe, *overrides], "the recipe names no test or validation images; name images after it"),
        ([recipe, fur], "edsr_baseline_x2_eco: its teacher is not trained yet; add --teacher.checkpoint FILE"),
        ([str(run), "--scale", "3"], "is a run, whose recipe cannot be changed"),
    ):
        assert main(["analyze", "targets", *arguments, "--out", str(tmp_path)]) == 2
        assert message in capsys.readouterr().err


def test_a_weight_beyond_one_is_refused(run: Path, tmp_path: Path, capsys: Any) -> None:
    assert main(["analyze", "targets", str(run), "--out", str(tmp_path), "--alphas", "0", "1.5"]) == 2
    assert "--alphas: expected weights of the real pair from 0 to 1, got 1.5" in capsys.readouterr().err
