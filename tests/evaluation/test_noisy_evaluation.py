"""Scores on noisy images: the noise is Gaussian and the same for everyone, and scores are means over its draws."""

import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.data.noise import add_noise
from eco_fast.data.resize import downsample_image
from eco_fast.evaluation.evaluate import evaluate_images
from eco_fast.evaluation.metrics import average
from eco_fast.evaluation.scoring import pairs_of, score_bicubic, score_network
from eco_fast.inference.upscale import super_resolve
from eco_fast.models import load_network, save_network
from eco_fast.models.edsr import EDSR
from eco_fast.training.pipeline import run_recipe
from tests.helpers import scores_of, upsample_image

SIGMA = 10.0
VALUES = ("psnr_y", "ssim_y", "psnr_rgb", "ssim_rgb")


@pytest.fixture
def work(photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with HR images, one of them in a sub-folder, and a network; commands run there."""
    monkeypatch.chdir(tmp_path)
    write_png(Path("HR/face.png"), photo[60:113, 120:179])
    write_png(Path("HR/more/fur.png"), photo[200:247, 31:90])
    save_network(Path("net.safetensors"), EDSR(2, 8, 1))
    return tmp_path


def gradient(height: int, width: int) -> Pixels:
    """An image that needs no file: 255 * (row + column) // (height + width)."""
    values = 255 * np.add.outer(np.arange(height), np.arange(width)) // (height + width)
    return np.repeat(values.astype(np.uint8)[:, :, None], 3, axis=2)


def test_the_noise_is_gaussian_of_its_sigma_and_independent_in_every_pixel_colour_and_draw() -> None:
    grey = np.full((200, 200, 3), 128, dtype=np.uint8)
    noise = np.stack([add_noise(grey, SIGMA, draw).astype(np.float64) - 128 for draw in range(10)])
    count = noise.size
    rounding = 1 / 12  # the variance that rounding to whole grey levels adds
    assert abs(noise.mean()) < 4 * SIGMA / math.sqrt(count)
    assert abs(noise.var() - SIGMA**2 - rounding) < 4 * SIGMA**2 * math.sqrt(2 / count)
    kurtosis = (noise**4).mean() / noise.var() ** 2
    assert abs(kurtosis - 3) < 4 * math.sqrt(96 / count)
    shifted = {
        "rows": noise[:, 1:] * noise[:, :-1],
        "columns": noise[:, :, 1:] * noise[:, :, :-1],
        "colours": noise[..., 1:] * noise[..., :-1],
        "draws": noise[1:] * noise[:-1],
        "halves": noise[:, 100:] * noise[:, :100],  # Box and Muller's two values of one word
    }
    for name, products in shifted.items():
        assert abs(products.mean()) < 4 * SIGMA**2 / math.sqrt(products.size), name


def test_values_are_clipped_and_images_of_other_pixels_have_other_noise() -> None:
    for level, half in ((0, slice(0, None)), (255, slice(None, 256))):
        noisy = add_noise(np.full((64, 64, 3), level, dtype=np.uint8), 20.0, 0)
        assert 0.45 < (noisy == level).mean() < 0.55  # half of the noise leads outside and is cut off
        assert noisy.dtype == np.uint8
        assert set(np.unique(noisy)) <= set(range(256)[half])
        assert abs(int(noisy.max()) - int(noisy.min())) < 128  # nothing wraps around
    first, second = np.full((40, 40, 3), 128, np.uint8), np.full((40, 40, 3), 128, np.uint8)
    second[0, 0, 0] = 129
    same = (add_noise(first, SIGMA, 0)[1:] == add_noise(second, SIGMA, 0)[1:]).mean()
    assert same < 0.06  # two independent ones agree in 1 / (2 sigma sqrt(pi)) = 2.8 % of the pixels


def test_the_noise_is_what_it_has_always_been() -> None:
    """Scores of different years and machines compare only if nobody ever changes the noise.

    The values were printed by `add_noise` when it was written, and agreed then with the plain computation below.
    """
    image = gradient(40, 52)
    drawn = [add_noise(image, SIGMA, draw) for draw in range(10)]
    golden = "bf684b0e066b0f84682a3b00772ed490e1904cae1fdc098b196d8dd3f56bd31f"
    assert hashlib.sha256(b"".join(noisy.tobytes() for noisy in drawn)).hexdigest() == golden
    digest = hashlib.sha256(image.tobytes()).digest()
    words = np.random.Philox(key=int.from_bytes(digest[:16], "little"), counter=[0, 7, 0, 0]).random_raw(3120)
    halves = [(int(word) >> 32, int(word) & 0xFFFFFFFF) for word in words]
    radii = [math.sqrt(-2 * math.log((high + 1) / 2**32)) for high, _ in halves]
    turns = [2 * math.pi * low / 2**32 for _, low in halves]
    normal = [r * math.cos(t) for r, t in zip(radii, turns, strict=True)]
    normal += [r * math.sin(t) for r, t in zip(radii, turns, strict=True)]
    by_hand = [min(max(round(int(p) + 10 * z), 0), 255) for p, z in zip(image.ravel(), normal, strict=True)]
    assert drawn[7].ravel().tolist() == by_hand


def test_evaluate_takes_the_mean_over_ten_draws_and_says_so(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "evaluate net.safetensors --data HR --scale 2 --device cpu --json"
    assert main([*command.split(), "noisy.json", "--noise-sigma", "10"]) == 0
    assert "noise of sigma 10, scores averaged over 10 draws" in " ".join(capsys.readouterr().out.split())
    content = json.loads((work / "noisy.json").read_text())
    assert (content["noise_sigma"], content["noise_draws"]) == (10.0, 10)
    network = load_network(work / "net.safetensors", "cpu")
    image = read_image(work / "HR" / "face.png")[:52, :58]
    lr = downsample_image(image, 2)
    scores = [scores_of(super_resolve(network, add_noise(lr, SIGMA, draw)), image, 2).as_dict() for draw in range(10)]
    for key in VALUES:
        mean = sum(one[key] for one in scores) / 10
        assert content["sets"]["HR"]["images"]["HR/face.png"][key] == pytest.approx(mean, rel=1e-12)
    assert len({one["psnr_y"] for one in scores}) == 10
    assert main([*command.split(), "clean.json"]) == 0
    assert "noise" not in capsys.readouterr().out
    assert json.loads((work / "clean.json").read_text()).keys() == {"scale", "checkpoint", "rounding", "sets"}


def test_other_programs_can_be_scored_on_exactly_the_same_images(work: Path) -> None:
    assert main(["downsample", "HR", "LR", "--scale", "2", "--noise-sigma", "10"]) == 0
    files = sorted(str(file.relative_to("LR")) for file in Path("LR").rglob("*.png"))
    assert files == [f"draw-{draw:02}/{name}.png" for draw in range(10) for name in ("face", "more/fur")]
    means = []
    for draw in range(10):  # bicubic stands for another program
        for file in Path(f"LR/draw-{draw:02}").rglob("*.png"):
            write_png(Path(f"SR/draw-{draw:02}") / file.name, upsample_image(read_image(file), 2))
        means.append(average(list(evaluate_images(f"SR/draw-{draw:02}", "HR", 2)[f"SR/draw-{draw:02}"].values())))
    images = {name: read_image(work / "HR" / name) for name in ("face.png", "more/fur.png")}
    ours = average(list(score_bicubic(pairs_of(images, 2, noise_sigma=SIGMA), 2).values()))
    assert average(means).as_dict() == pytest.approx(ours.as_dict(), rel=1e-12)
    assert main(["downsample", "HR/face.png", "one", "--scale", "2", "--noise-sigma", "10"]) == 0
    assert np.array_equal(read_image(Path("one/draw-03/face.png")), read_image(Path("LR/draw-03/face.png")))


def test_saved_images_are_those_of_the_first_draw(work: Path) -> None:
    command = "evaluate net.safetensors --data HR --scale 2 --device cpu --save-images saved --noise-sigma 10"
    assert main(command.split()) == 0
    image = read_image(work / "HR" / "face.png")[:52, :58]
    expected = super_resolve(
        load_network(work / "net.safetensors", "cpu"), add_noise(downsample_image(image, 2), SIGMA, 0)
    )
    assert np.array_equal(read_image(work / "saved" / "HR" / "face.png"), expected)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("downsample HR LR --scale 2 --noise-sigma -1", "a number of grey levels from 0, got -1"),
        ("evaluate net.safetensors --data HR --scale 2 --noise-sigma nan", "a number of grey levels from 0, got nan"),
        ("downsample HR/face.png lr.png --scale 2 --noise-sigma 5", "lr.png: .*a folder"),
    ],
)
@pytest.mark.usefixtures("work")
def test_what_cannot_be_done_is_refused(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command.split()) == 2
    said = capsys.readouterr().err
    assert re.search(message, said), said
    assert not list(Path.cwd().glob("LR/**/*.png"))


@pytest.mark.slow
def test_a_noisy_recipe_validates_on_one_draw_and_ends_with_ten(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values: dict[str, Any] = {
        "data": {"train": ("HR",), "validation": ("HR/face.png",), "test": ("HR",), "patch": 8, "noise_sigma": SIGMA},
        "model": {"features": 8, "blocks": 1},
        "objective": {"name": "vanilla"},
        "train": {"steps": 2, "batch_size": 2, "validate_every": 2, "compile": False, "device": "cpu"},
    }
    run_recipe(config.validate(values, "test"), work / "run")
    assert "noise of sigma 10, scores averaged over 10 draws" in " ".join(capsys.readouterr().out.split())
    network = load_network(work / "run" / "checkpoints" / "last.safetensors", "cpu")
    images = {name: read_image(work / "HR" / name) for name in ("face.png", "more/fur.png")}
    rows = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
    lr = downsample_image(images["face.png"][:52, :58], 2)
    first = scores_of(super_resolve(network, add_noise(lr, SIGMA, 0)), images["face.png"][:52, :58], 2)
    assert [row["psnr_y"] for row in rows if "psnr_y" in row] == [pytest.approx(first.psnr_y, rel=1e-12)]
    summary = json.loads((work / "run" / "summary.json").read_text())
    assert (summary["noise_sigma"], summary["noise_draws"]) == (10.0, 10)
    ours = average(list(score_network(network, pairs_of(images, 2, noise_sigma=SIGMA)).values())).as_dict()
    bicubic = average(list(score_bicubic(pairs_of(images, 2, noise_sigma=SIGMA), 2).values())).as_dict()
    assert summary["student"] == pytest.approx(ours, rel=1e-12)
    assert summary["bicubic"] == pytest.approx(bicubic, rel=1e-12)
    assert summary["sets"]["HR"]["student"] == summary["student"]
