"""Scoring: checkpoints against numbers computed by hand, existing images against MATLAB's, names and files."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from eco_fast_kernels import Rounding
from PIL import Image
from skimage.metrics import structural_similarity

from eco_fast.cli.main import main
from eco_fast.config import Scale
from eco_fast.data.images import Pixels, read_image, write_png
from eco_fast.data.resize import downsample_image
from eco_fast.evaluation.evaluate import evaluate, evaluate_images
from eco_fast.evaluation.metrics import Scores
from eco_fast.evaluation.scoring import pairs_of, score_bicubic
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from tests.helpers import upsample_image


@pytest.fixture
def hr(photo: Pixels, tmp_path: Path) -> Path:
    """A folder with a sub-folder, sizes that are no multiple of any scale, and a greyscale image."""
    folder = tmp_path / "HR"
    write_png(folder / "face.png", photo[60:113, 120:179])
    write_png(folder / "more" / "fur.png", photo[200:247, 31:90])
    Image.fromarray(photo[100:151, 200:241, 1]).save(folder / "grey.png")
    return folder


def checkpoint(folder: Path, scale: int) -> tuple[Path, EDSR]:
    network = EDSR(scale, 4, 1).eval()
    network.add_mean.bias.mul_(1.1)
    save_network(folder / f"x{scale}.safetensors", network)
    return folder / f"x{scale}.safetensors", network


def by_hand(sr: Pixels, hr: Pixels, border: int) -> Scores:
    """PSNR from its definition, SSIM from scikit-image, on Y and on RGB."""
    sr, hr = (image[border:-border, border:-border] for image in (sr, hr))
    values: dict[str, float] = {}
    for name, weights in (("y", [65.481 / 255, 128.553 / 255, 24.966 / 255]), ("rgb", None)):
        x, y = (image.astype(np.float64) if weights is None else 16 + image @ np.array(weights) for image in (sr, hr))
        values[f"psnr_{name}"] = 10 * np.log10(255**2 / ((x - y) ** 2).mean())
        _, similarity = structural_similarity(
            x,
            y,
            data_range=255,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            full=True,
            channel_axis=2 if x.ndim == 3 else None,
        )
        values[f"ssim_{name}"] = similarity[5:-5, 5:-5].mean()
    return Scores(**values)


def strict_json(path: Path) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    return content


def assert_equal(scores: Mapping[str, float | None], expected: Scores) -> None:
    assert scores == pytest.approx(expected.as_dict(), rel=1e-12)


@pytest.mark.parametrize(("scale", "rounding"), [(2, "uint8"), (3, "im2double"), (4, "uint8")])
def test_a_checkpoint_scores_what_a_computation_by_hand_gives(
    scale: Scale, rounding: Rounding, hr: Path, tmp_path: Path
) -> None:
    path, network = checkpoint(tmp_path, scale)
    results = evaluate(path, [str(hr)], scale, rounding=rounding, device="cpu")
    images = {"HR/face.png": "face.png", "HR/grey.png": "grey.png", "HR/more/fur.png": "more/fur.png"}
    assert results.keys() == {str(hr)}
    assert results[str(hr)].keys() == images.keys()
    for name, file in images.items():
        image = np.array(Image.open(hr / file).convert("RGB"))
        image = image[: image.shape[0] - image.shape[0] % scale, : image.shape[1] - image.shape[1] % scale]
        lr = torch.from_numpy(downsample_image(image, scale, rounding)).permute(2, 0, 1)[None] / 255
        with torch.inference_mode():
            sr = (255 * network(lr.contiguous(memory_format=torch.channels_last)))[0].permute(1, 2, 0).numpy()
        expected = by_hand(np.clip(np.round(sr), 0, 255).astype(np.uint8), image, scale)
        assert_equal(results[str(hr)][name].as_dict(), expected)


def test_bicubic_baseline_scores_what_a_computation_by_hand_gives(photo: Pixels) -> None:
    image = photo[60:112, 120:180]
    scores = score_bicubic(pairs_of({"face": photo[60:113, 120:181]}, 2, "im2double"), 2, "im2double")["face"]
    sr = upsample_image(downsample_image(image, 2, "im2double"), 2, "im2double")
    assert_equal(scores.as_dict(), by_hand(sr, image, 2))
    assert scores.psnr_y > 30


def test_json_holds_every_image_and_the_mean_of_each_set(hr: Path, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, 2)
    single = str(hr / "more" / "fur.png")
    file = tmp_path / "new" / "scores.json"
    assert main(["evaluate", str(path), "--data", str(hr), single, "--scale", "2", "--json", str(file)]) == 0
    content = strict_json(file)
    assert {key: content[key] for key in ("scale", "checkpoint", "rounding")} == {
        "scale": 2,
        "checkpoint": str(path),
        "rounding": "uint8",
    }
    assert list(content["sets"]) == [str(hr), single]
    images = content["sets"][str(hr)]["images"]
    assert list(images) == ["HR/face.png", "HR/grey.png", "HR/more/fur.png"]
    for key, mean in content["sets"][str(hr)]["mean"].items():
        assert mean == pytest.approx(sum(one[key] for one in images.values()) / 3, rel=1e-12)
    assert content["sets"][single]["images"] == {"more/fur.png": images["HR/more/fur.png"]}


def test_saved_images_score_the_same_when_scored_again(hr: Path, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, 3)
    saved, first, second = tmp_path / "SR", tmp_path / "first.json", tmp_path / "second.json"
    fixed = ["--scale", "3", "--json"]
    assert main(["evaluate", str(path), "--data", str(hr), "--save-images", str(saved), *fixed, str(first)]) == 0
    files = sorted(str(file.relative_to(saved)) for file in saved.rglob("*.*"))
    assert files == ["HR/face.png", "HR/grey.png", "HR/more/fur.png"]
    assert read_image(saved / "HR" / "face.png").shape == (51, 57, 3)
    assert main(["evaluate", "--sr", str(saved), "--hr", str(hr), *fixed, str(second)]) == 0
    before, again = strict_json(first)["sets"][str(hr)], strict_json(second)["sets"][str(saved)]
    assert again["mean"] == before["mean"]
    assert again["images"] == {Path(name).stem: scores for name, scores in before["images"].items()}


def test_images_of_one_name_are_not_saved_over_each_other(hr: Path, photo: Pixels, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, 2)
    write_png(tmp_path / "other" / "HR" / "face.png", photo[:40, :40])
    Image.fromarray(photo[:44, :40]).save(hr / "face.bmp")
    results = evaluate(path, [str(hr), str(tmp_path / "other" / "HR")], 2, save_images=tmp_path / "SR", device="cpu")
    assert len(list((tmp_path / "SR" / "HR").iterdir())) == sum(map(len, results.values()))


@pytest.mark.parametrize(
    "name", ["photo[edited].png", "[/final]_b.png", "[bold red].png", "a%d_%s.png", 200 * "x" + ".png"]
)
def test_names_are_shown_as_they_are(
    name: str, photo: Pixels, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, _ = checkpoint(tmp_path, 2)
    folder = tmp_path / "Set[/final]"
    write_png(folder / name, photo[:40, :40])
    scores = tmp_path / "scores.json"
    given = ["evaluate", str(path), "--data", str(folder), "--scale", "2", "--device", "cpu", "--json", str(scores)]
    assert main(given) == 0
    assert list(strict_json(scores)["sets"][str(folder)]["images"]) == [f"Set[/final]/{name}".partition("/")[2]]
    shown = capsys.readouterr().out
    columns = [[cell.strip() for cell in line.split("│")] for line in shown.splitlines() if "│" in line]
    assert Path(name).name in "".join(cells[2] for cells in columns)


def test_scores_are_written_before_they_are_shown(hr: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("the terminal is gone")

    monkeypatch.setattr("eco_fast.evaluation.evaluate.show", fails)
    file = tmp_path / "scores.json"
    assert main(["evaluate", "--sr", str(hr), "--hr", str(hr), "--scale", "2", "--json", str(file)]) == 2
    assert strict_json(file)["sets"]


def test_identical_images_have_no_psnr_in_json(hr: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    assert main(["evaluate", "--sr", str(hr), "--hr", str(hr), "--scale", "2", "--json", str(file)]) == 0
    content = strict_json(file)["sets"][str(hr)]
    for scores in (content["mean"], *content["images"].values()):
        assert scores == {"psnr_y": None, "ssim_y": 1.0, "psnr_rgb": None, "ssim_rgb": 1.0}


def test_sr_larger_than_the_cropped_hr_is_cropped_too(photo: Pixels, tmp_path: Path) -> None:
    """Upscaling an LR of ceil(size / scale) pixels gives more pixels than HR has."""
    write_png(tmp_path / "HR" / "a.png", photo[:40, :41])
    write_png(tmp_path / "SR" / "a.png", photo[:40, :41])
    assert evaluate_images(str(tmp_path / "SR"), str(tmp_path / "HR"), 4)[str(tmp_path / "SR")]["a"].ssim_y == 1
    write_png(tmp_path / "SR" / "a.png", photo[:40, :44])
    with pytest.raises(ValueError, match=r"SR/a\.png: SR is 44x40 but HR is 40x40"):
        evaluate_images(str(tmp_path / "SR"), str(tmp_path / "HR"), 4)


def fill(folder: Path, names: Mapping[str, int]) -> str:
    """Noise images, each from its seed."""
    for name, seed in names.items():
        write_png(folder / name, np.random.default_rng(seed).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    return str(folder)


def test_names_pair_as_benchmarks_and_papers_write_them(tmp_path: Path) -> None:
    hr = fill(
        tmp_path / "HR",
        {"img1.png": 1, "img10.png": 2, "img_1.png": 3, "baby.png": 4, "x.png": 5, "b.c.png": 6, "img_1_b.png": 7},
    )
    sr = fill(
        tmp_path / "SR",
        {
            "img1x2.png": 1,
            "img10_RCAN_x2.png": 2,
            "img_1-SR.png": 3,
            "sub/baby.png": 4,
            "xx2.png": 5,
            "b.c x2.png": 6,
            "img_1_b_x2.png": 7,
        },
    )
    scores = evaluate_images(sr, hr, 2)[sr]
    assert scores.keys() == {"img1", "img10", "img_1", "baby", "x", "b.c", "img_1_b"}
    assert all(one.psnr_y == float("inf") for one in scores.values()), scores  # another partner would be other noise


@pytest.mark.parametrize(
    ("hr", "sr", "said"),
    [
        (["img1.png"], ["img10.png"], r"img10\.png: no HR image of that name"),
        (["img1.png", "img10.png"], ["img10x2.png"], r"no SR image for .*img1\.png \(1 are missing\)"),
        (["a.png"], ["a.png", "ax2.png"], r"ax2\.png and .*a\.png both pair with .*a\.png"),
        (["a.png", "sub/a.png"], ["a.png"], r"a\.png and .*a\.png are both called a"),
        (["baby.png"], ["bab.png"], r"bab\.png: no HR image"),
    ],
)
def test_images_without_one_partner_are_refused(hr: list[str], sr: list[str], said: str, tmp_path: Path) -> None:
    folders = [fill(tmp_path / name, dict.fromkeys(files, 0)) for name, files in (("SR", sr), ("HR", hr))]
    with pytest.raises(ValueError, match=said):
        evaluate_images(folders[0], folders[1], 2)


def test_images_too_small_to_score_are_refused_by_name(photo: Pixels, tmp_path: Path) -> None:
    path, _ = checkpoint(tmp_path, 4)
    for size in (3, 15):  # smaller than the scale, than the window of SSIM
        write_png(tmp_path / "HR" / "tiny.png", photo[:size, :60])
        with pytest.raises(ValueError, match=r"tiny\.png: "):
            evaluate(path, [str(tmp_path / "HR")], 4, device="cpu")


def test_published_images_score_what_matlab_says(shared_data: Path, tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    sr, hr = str(shared_data / "oracle" / "rcan_set5_x2"), str(shared_data / "benchmark" / "Set5" / "HR")
    assert main(["evaluate", "--sr", sr, "--hr", hr, "--scale", "2", "--json", str(file)]) == 0
    content = strict_json(file)["sets"][sr]
    matlab = {
        "baby": (38.979958, 0.968184),
        "bird": (43.639850, 0.990903),
        "butterfly": (36.058756, 0.980312),
        "head": (36.075233, 0.892380),
        "woman": (36.617042, 0.975444),
    }
    assert content["images"].keys() == matlab.keys()
    for name, scores in {**content["images"], "mean": content["mean"]}.items():
        psnr, ssim = matlab.get(name, (38.274168, 0.961445))
        assert scores["psnr_y"] == pytest.approx(psnr, abs=1e-6)
        assert scores["ssim_y"] == pytest.approx(ssim, abs=1e-6)
