"""What a finished run shows: its table, curves and images."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eco_fast.data.images import Pixels
from eco_fast.models.edsr import EDSR
from eco_fast.training import crops
from eco_fast.training.crops import CROP, cut_crops, most_detailed, read_crops, write_crops
from eco_fast.training.figures import draw_curves, draw_samples, show_summary


def decoded(path: Path) -> Pixels:
    with Image.open(path) as image:
        assert image.format == "PNG"
        return np.array(image.convert("RGB"))


def coloured(image: Pixels) -> int:
    """Pixels that are neither white nor grey: lines of a plot."""
    return int((np.ptp(image.astype(int), axis=2) > 60).sum())


@pytest.mark.slow
def test_curves_show_every_run_that_has_values(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 9.0 - step, "alpha": step / 8, "learning_rate": 1e-4} for step in range(1, 9)]
    gaps = [{"step": 4, "loss": None, "alpha": 0.5, "learning_rate": 1e-4}, {"step": 4, "psnr_y": None, "ssim_y": 1.0}]
    draw_curves(tmp_path / "empty.png", {"student": []})
    draw_curves(tmp_path / "gaps.png", {"student": gaps})
    draw_curves(tmp_path / "one.png", {"student": rows})
    draw_curves(tmp_path / "two.png", {"student": rows, "vanilla twin": [{**row, "loss": 1.0} for row in rows]})
    images = {name: decoded(tmp_path / f"{name}.png") for name in ("empty", "gaps", "one", "two")}
    assert {image.shape for image in images.values()} == {(720, 1200, 3)}
    counts = [coloured(image) for image in images.values()]
    assert 0 == counts[0] < counts[1] < counts[2] < counts[3]


@pytest.mark.slow
@pytest.mark.parametrize(("scale", "size"), [(2, (17, 41)), (8, (32, 33)), (3, (130, 33)), (4, (150, 160))])
def test_samples_are_drawn_of_images_of_any_size(
    scale: int, size: tuple[int, int], photo: Pixels, tmp_path: Path
) -> None:
    images = {"set/sub/cat.jpg": photo[40 : 40 + size[0], 120 : 120 + size[1]]}
    network = EDSR(scale, 4, 1).eval()
    draw_samples(tmp_path, list(cut_crops(network, images, "uint8")))
    image = decoded(tmp_path / "set_sub_cat.png")
    assert image.shape == (432, 1440, 3)
    assert len(np.unique(image.reshape(-1, 3), axis=0)) > 200
    assert (image[:4] == 255).all()  # the captions are whole
    assert (image[:200] < 128).any()


def test_few_samples_are_drawn_of_many_images(photo: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crops, "MAX_SAMPLES", 2)
    images = {f"{index}.png": photo[index : index + 16, :16] for index in range(4)}
    network = EDSR(2, 4, 1).eval()
    draw_samples(tmp_path, list(cut_crops(network, images, "uint8")))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["0.png", "1.png"]


def test_every_image_has_a_sample_whatever_its_name(photo: Pixels, tmp_path: Path) -> None:
    names = ["a/b_c.png", "a_b/c.png", "s/x.png", "s/x.jpg", f"s/{247 * 'x'}.png", "s/[bold]%d.png", "s/caf\udce9.png"]
    images = {name: photo[:16, index : index + 16] for index, name in enumerate(names)}
    network = EDSR(2, 4, 1).eval()
    cut = list(cut_crops(network, images, "uint8"))
    draw_samples(tmp_path, cut)
    assert len(list(tmp_path.iterdir())) == len(names)
    write_crops(tmp_path, cut)
    kept = read_crops(tmp_path)
    assert [(crop.image, crop.psnr_y) for crop in kept] == [(crop.image, crop.psnr_y) for crop in cut]
    for crop, files in zip(cut, kept, strict=True):
        assert all(np.array_equal(decoded(files.panels[panel]), pixels) for panel, pixels in crop.panels.items())


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_detail_is_where_the_image_has_some(scale: int) -> None:
    image = np.full((960, 300 // scale * scale, 3), 128, dtype=np.uint8)
    place = np.array([500, 200])
    image[500:530, 200:230] = np.random.default_rng(0).integers(0, 256, (30, 30, 3))
    corner = np.array(most_detailed(image, scale))
    assert (corner % scale == 0).all()
    assert (corner <= place).all()
    assert (place + 30 <= corner + CROP).all()


def test_the_table_names_every_network_and_an_infinite_score(capsys: pytest.CaptureFixture[str]) -> None:
    scores = {"psnr_y": 31.23456, "ssim_y": 0.91239, "psnr_rgb": 29.0, "ssim_rgb": 0.9}
    summary = {
        "scale": 2,
        "images": ["a", "b"],
        "bicubic": {**scores, "psnr_y": None},
        "student": scores,
        "seconds": {"prepare": 1.4, "train": 61.0},
    }
    show_summary(summary, Path("runs/mine"))
    said = capsys.readouterr().out
    assert "x2 on 2 held-out images" in said
    rows = {words[1]: words for words in (line.split() for line in said.splitlines()) if len(words) == 7}
    assert rows["student"][3:6:2] == ["31.235", "0.9124"]
    assert rows["bicubic"][3:6:2] == ["inf", "0.9124"]
    assert "teacher" not in rows
    assert "time: prepare 1 s (2%), train 61 s (98%)" in said
    assert "in runs/mine: samples/, curves.png, checkpoints/\n" in said
    show_summary({"scale": 2, "images": [], "seconds": {}}, Path("runs/mine"))
    said = capsys.readouterr().out
    assert "PSNR" not in said
    assert "samples" not in said
