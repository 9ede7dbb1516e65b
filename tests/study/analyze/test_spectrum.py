"""Gradients with respect to spectra, against Parseval's relation and closed forms in numpy."""

import csv
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from eco_fast.cli.main import main
from eco_fast.study.analyze.runs import open_run, recipe_at
from eco_fast.study.analyze.spectrum import loss_of, mean_magnitude, mean_spectra, spectra, target_of, through_spectrum
from eco_fast.study.analyze.spectrum_report import NAMES, radial_profile
from eco_fast.training.run_folder import read_rows
from eco_fast.training.step import network_input

pytestmark = pytest.mark.slow

Array = npt.NDArray[np.float64]
PATCH, BATCH = 8, 3


def waves(side: int, rows: int, columns: int) -> Array:
    """An image of a single frequency: so many periods down and across."""
    y, x = np.mgrid[:side, :side] / side
    wave: Array = np.cos(2 * np.pi * (rows * y + columns * x))
    return wave


def test_images_come_back_from_their_spectra() -> None:
    images = torch.rand(2, 3, 13, 12)
    spectrum, back = through_spectrum(images)
    assert (back - images).norm() < 1e-6 * images.norm()
    assert spectrum.abs().square().sum().item() == pytest.approx(images.square().sum().item(), rel=1e-5)


@pytest.mark.parametrize("name", ["vanilla-1", "noise_free-2", "eco-1"])
def test_losses_are_those_of_the_training_and_gradients_keep_their_energy(name: str, kept_runs: Path) -> None:
    run = open_run(kept_runs / name)
    network, step = run.network(2)
    recipe = recipe_at(run.config, step)
    (batch,) = run.batches(recipe, step, 1)
    loss = loss_of(network, recipe, batch)
    inputs, targets = network_input(batch, recipe.scale, recipe.data), target_of(batch, 2)
    value, (x, t, of_x, of_t) = spectra(loss, inputs, targets)
    assert value == pytest.approx(loss(inputs, targets).item(), rel=1e-6)
    assert value / BATCH == pytest.approx(read_rows(run.folder)[2]["loss"], rel=1e-5)

    lr, hr = inputs.clone().requires_grad_(), targets.clone().requires_grad_()
    difference = 255 * (network(lr) - hr)  # the L1 loss, by hand
    direct = torch.autograd.grad(difference.abs().mean(dim=(1, 2, 3)).sum(), (lr, hr))
    for images, gradient, spectrum, of_spectrum in ((inputs, direct[0], x, of_x), (targets, direct[1], t, of_t)):
        transform = np.fft.fft2(np.stack([images.numpy(), gradient.numpy()]), norm="ortho")
        assert np.abs(spectrum.numpy() - transform[0]).max() < 1e-5
        assert of_spectrum.abs().square().sum().item() == pytest.approx(gradient.square().sum().item(), rel=1e-4)
        error = np.linalg.norm(of_spectrum.numpy() - transform[1])
        assert error < 1e-3 * np.linalg.norm(transform[1])


@pytest.mark.parametrize(("rows", "columns", "ring"), [(3, 0, 3), (0, 10, 10), (3, 4, 5), (16, 16, 23)])
def test_a_single_frequency_is_on_its_ring(rows: int, columns: int, ring: int) -> None:
    side = 32
    image = torch.from_numpy(waves(side, rows, columns))[None, None].float()
    frequencies, profile = radial_profile(mean_magnitude(torch.fft.fft2(image, norm="ortho")).numpy())
    assert len(frequencies) == len(profile)
    assert frequencies[profile.argmax()] == ring / side == pytest.approx(np.hypot(rows, columns) / side, abs=0.5 / side)
    assert np.delete(profile, ring).max() < 1e-4 * profile[ring]


@pytest.mark.parametrize("side", [8, 9])
def test_a_flat_image_is_in_the_centre(side: int) -> None:
    plane = mean_magnitude(torch.fft.fft2(torch.full((2, 3, side, side), 0.5), norm="ortho")).numpy()
    assert plane[side // 2, side // 2] == pytest.approx(0.5 * side)
    assert radial_profile(plane)[1] == pytest.approx([0.5 * side] + [0] * (len(radial_profile(plane)[1]) - 1), abs=1e-5)


class Filter(nn.Module):
    """Circular convolution by `spectrum` (real, [h, w]), then each pixel as 2x2."""

    def __init__(self, spectrum: Array) -> None:
        super().__init__()
        self.spectrum = torch.from_numpy(spectrum).float()

    def forward(self, lr: Tensor) -> Tensor:
        filtered: Tensor = torch.fft.ifft2(torch.fft.fft2(lr) * self.spectrum).real
        return filtered.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def test_a_linear_filter_has_the_gradient_of_its_formula(kept_runs: Path) -> None:
    run = open_run(kept_runs / "vanilla-1")
    recipe = recipe_at(run.config, 2)
    recipe = recipe.model_copy(update={"objective": recipe.objective.model_copy(update={"loss": "l2"})})
    batches = run.batches(recipe, 2, 2)
    along = np.fft.fftfreq(PATCH)
    low_pass = np.exp(-8 * np.hypot(along[:, None], along[None]) ** 2)
    planes, loss = mean_spectra(Filter(low_pass), recipe, batches)

    x, t = (
        np.concatenate([images.numpy().astype(np.float64) for images in some])
        for some in (
            [network_input(batch, recipe.scale, recipe.data) for batch in batches],
            [target_of(batch, 2) for batch in batches],
        )
    )
    error = np.fft.ifft2(np.fft.fft2(x) * low_pass).real.repeat(2, axis=2).repeat(2, axis=3) - t
    assert loss == pytest.approx(np.mean((255 * error) ** 2), rel=1e-5)
    slope = 2 * 255**2 * error / error[0].size  # of each patch's own mean, with respect to the prediction
    down = slope.reshape(*x.shape[:2], PATCH, 2, PATCH, 2).sum(axis=(3, 5))
    expected = {"input": x, "target": t, "input_gradient": down, "target_gradient": slope}
    for name, images in expected.items():
        transform = np.fft.fft2(images, norm="ortho") * (low_pass if name == "input_gradient" else 1)
        plane = np.fft.fftshift(np.abs(transform).mean(axis=(0, 1)))
        assert np.abs(planes[name] - plane).max() < 1e-5 * plane.max(), name


def test_the_command_looks_at_several_objectives_of_one_checkpoint(
    kept_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objectives = ("vanilla", "eco", "noise_free", "kd")
    arguments = ["analyze", "spectrum", str(kept_runs / "eco-1"), "--out", str(tmp_path), "--checkpoint", "2"]
    assert main([*arguments, "--batches", "2", "--objectives", *objectives]) == 0
    said = capsys.readouterr().out
    assert "eco: step 2, alpha 0.5, loss" in said
    assert "over 6 patches" in said
    with np.load(tmp_path / "spectrum.npz") as planes:
        assert set(planes) == {f"{objective}/{name}" for objective in objectives for name in NAMES}
        sides = {name: planes[f"kd/{name}"].shape for name in NAMES}
        assert sides == dict(zip(NAMES, [(8, 8), (16, 16)] * 2, strict=True))
        centre = {key: planes[key][len(planes[key]) // 2, len(planes[key]) // 2] for key in planes}
        np.testing.assert_array_equal(planes["kd/input"], planes["vanilla/input"])
        np.testing.assert_array_equal(planes["kd/target"], planes["noise_free/target"])
        profile = radial_profile(planes["eco/input_gradient"])
    for name in ("input", "target"):  # the blend of the pairs, whose mean brightness is positive
        blend = (centre[f"vanilla/{name}"] + centre[f"noise_free/{name}"]) / 2
        assert centre[f"vanilla/{name}"] != pytest.approx(centre[f"noise_free/{name}"], rel=1e-3)
        assert centre[f"eco/{name}"] == pytest.approx(blend, rel=1e-5)
    with (tmp_path / "spectrum.csv").open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if (row["name"], row["spectrum"]) == ("eco", "input_gradient")]
    assert [float(row["cycles_per_pixel"]) for row in rows] == pytest.approx(profile[0])
    assert [float(row["magnitude"]) for row in rows] == pytest.approx(profile[1])
    with Image.open(tmp_path / "spectrum.png") as image:
        assert image.size == (1320, 1632)


def test_each_run_is_looked_at_under_its_own_objective(
    kept_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = [str(kept_runs / name) for name in ("eco-1", "vanilla-2", "vanilla-1")]
    assert main(["analyze", "spectrum", *runs, "--out", str(tmp_path), "--batches", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    names = ["vanilla seed=1: step 4, alpha 1,", "vanilla seed=2: step 4, alpha 1,", "eco: step 4, alpha 1,"]
    assert [line.split(" loss")[0] for line in said if ": step" in line] == names


def test_the_start_is_a_checkpoint_too(kept_runs: Path) -> None:
    run = open_run(kept_runs / "eco-1")
    network, step = run.network(0)
    recipe = recipe_at(run.config, step)
    assert recipe.objective.alpha_value == 0
    _, loss = mean_spectra(network, recipe, run.batches(recipe, step, 1))
    assert loss == pytest.approx(read_rows(run.folder)[0]["loss"], rel=1e-5)


def test_what_cannot_be_looked_at_is_refused_in_a_sentence(
    kept_runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = str(kept_runs / "eco-1"), str(kept_runs / "vanilla-1")
    refused = {
        "takes the weights of one RUN, got 2": [one, two, "--objectives", "kd"],
        "this run has last, step-00000001": [one, "--checkpoint", "7"],
        "best.safetensors: there is no such checkpoint": [one, "--checkpoint", "best"],
        "--batches: expected at least 1, got 0": [one, "--batches", "0"],
    }
    for said, arguments in refused.items():
        assert main(["analyze", "spectrum", *arguments, "--out", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
