"""PSNR and SSIM against published scores, scikit-image's PSNR, the formula of SSIM, and values computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from skimage.metrics import peak_signal_noise_ratio

from eco_fast.data.images import Pixels, read_image
from eco_fast.data.resize import modcrop
from eco_fast.evaluation.metrics import Scores, average, luma, psnr, score, ssim

# RCAN's results for Set5 x2, scored by its authors with MATLAB: PSNR-Y and SSIM-Y.
RCAN_SET5_X2 = {
    "baby": (38.979958, 0.968184),
    "bird": (43.639850, 0.990903),
    "butterfly": (36.058756, 0.980312),
    "head": (36.075233, 0.892380),
    "woman": (36.617042, 0.975444),
}
RCAN_SET5_X2_MEAN = (38.274168, 0.961445)
LAST_DIGIT = 1e-6


@pytest.fixture
def noisy(photo: Pixels) -> Pixels:
    noise = np.random.default_rng(0).normal(0, 12, photo.shape)
    return np.clip(np.rint(photo + noise), 0, 255).astype(np.uint8)


def ssim_by_formula(first: np.ndarray, second: np.ndarray) -> float:
    """Wang et al.'s formula at every position that has a whole window, averaged over positions and channels."""
    offset = np.arange(-5, 6)
    window = np.exp(-(offset[:, None] ** 2 + offset**2) / (2 * 1.5**2))
    window /= window.sum()

    def mean(plane: np.ndarray) -> np.ndarray:
        means: np.ndarray = np.einsum("ijkl,kl->ij", sliding_window_view(plane, window.shape), window)
        return means

    values = []
    planes = (np.atleast_3d(image.astype(np.float64)).transpose(2, 0, 1) for image in (first, second))
    for x, y in zip(*planes, strict=True):
        variances = [mean(x * x) - mean(x) ** 2, mean(y * y) - mean(y) ** 2]
        luminance = (2 * mean(x) * mean(y) + 2.55**2) / (mean(x) ** 2 + mean(y) ** 2 + 2.55**2)
        structure = (2 * (mean(x * y) - mean(x) * mean(y)) + 7.65**2) / (sum(variances) + 7.65**2)
        values.append(luminance * structure)
    return float(np.mean(values))


def test_equals_the_published_scores(shared_data: Path) -> None:
    scores = {}
    for name, (psnr_y, ssim_y) in RCAN_SET5_X2.items():
        hr = modcrop(read_image(shared_data / "benchmark" / "Set5" / "HR" / f"{name}.png"), 2)
        sr = read_image(shared_data / "oracle" / "rcan_set5_x2" / f"{name}_RCAN_x2.png")
        scores[name] = score(sr, hr, border=2)
        assert abs(scores[name].psnr_y - psnr_y) <= LAST_DIGIT, name
        assert abs(scores[name].ssim_y - ssim_y) <= LAST_DIGIT, name
    mean = average(list(scores.values()))
    assert abs(mean.psnr_y - RCAN_SET5_X2_MEAN[0]) <= LAST_DIGIT
    assert abs(mean.ssim_y - RCAN_SET5_X2_MEAN[1]) <= LAST_DIGIT


def test_equals_scikit_image_and_the_formula(photo: Pixels, noisy: Pixels) -> None:
    assert psnr(noisy, photo) == pytest.approx(peak_signal_noise_ratio(photo, noisy, data_range=255), abs=1e-10)
    assert ssim(noisy, photo) == pytest.approx(ssim_by_formula(noisy, photo), abs=1e-10)
    grey = luma(noisy), luma(photo)
    assert psnr(*grey) == pytest.approx(peak_signal_noise_ratio(*grey, data_range=255), abs=1e-10)
    assert ssim(*grey) == pytest.approx(ssim_by_formula(*grey), abs=1e-10)


@pytest.mark.parametrize("border", [0, 2, 3, 8])
def test_score_crops_the_border_before_everything(photo: Pixels, noisy: Pixels, border: int) -> None:
    inside = (slice(border, 300 - border), slice(border, 451 - border))
    sr, hr = noisy[inside], photo[inside]
    damaged = noisy.copy()
    damaged[:border], damaged[300 - border :], damaged[:, :border], damaged[:, 451 - border :] = 0, 255, 0, 255
    scores = score(damaged, photo, border)
    assert scores.psnr_y == pytest.approx(peak_signal_noise_ratio(luma(hr), luma(sr), data_range=255), abs=1e-10)
    assert scores.ssim_y == pytest.approx(ssim_by_formula(luma(sr), luma(hr)), abs=1e-10)
    assert scores.psnr_rgb == pytest.approx(peak_signal_noise_ratio(hr, sr, data_range=255), abs=1e-10)
    assert scores.ssim_rgb == pytest.approx(ssim_by_formula(sr, hr), abs=1e-10)
    assert scores.as_dict() == {
        "psnr_y": scores.psnr_y,
        "ssim_y": scores.ssim_y,
        "psnr_rgb": scores.psnr_rgb,
        "ssim_rgb": scores.ssim_rgb,
    }


@pytest.mark.parametrize(
    ("colour", "expected"),
    [
        ((0, 0, 0), 16),
        ((255, 255, 255), 235),
        ((255, 0, 0), 81.481),
        ((0, 255, 0), 144.553),
        ((0, 0, 255), 40.966),
        ((51, 102, 204), 100.4902),  # 16 + (65.481 + 2 * 128.553 + 4 * 24.966) / 5
    ],
)
def test_luma_by_hand(colour: tuple[int, int, int], expected: float) -> None:
    assert luma(np.array([[colour]], np.uint8)) == pytest.approx(np.array([[expected]]), abs=1e-12)


def test_luma_is_not_rounded(photo: Pixels) -> None:
    values = luma(photo)
    assert values.dtype == np.float64
    assert np.abs(values - np.rint(values)).max() > 0.49


@pytest.mark.parametrize(("difference", "expected"), [(1, 48.130804), (5, 34.151404), (255, 0.0)])
def test_psnr_by_hand(difference: int, expected: float) -> None:
    zeros = np.zeros((4, 4, 3), np.uint8)  # 20 * log10(255 / difference)
    assert psnr(zeros, zeros + np.uint8(difference)) == pytest.approx(expected, abs=1e-6)
    assert psnr(zeros + np.uint8(difference), zeros) == pytest.approx(expected, abs=1e-6)


def test_ssim_of_two_constants_by_hand() -> None:
    # Both variances are 0: only the term of the means remains.
    black, grey = np.zeros((11, 11)), np.full((11, 11), 100.0)
    assert ssim(black, grey) == pytest.approx(2.55**2 / (100**2 + 2.55**2), abs=1e-12)


def test_identical_images_score_inf_and_one(photo: Pixels) -> None:
    scores = score(photo, photo.copy(), border=2)
    assert scores.psnr_y == scores.psnr_rgb == math.inf
    assert scores.ssim_y == pytest.approx(1, abs=1e-12)
    assert scores.ssim_rgb == pytest.approx(1, abs=1e-12)


def test_one_differing_pixel_is_not_inf(photo: Pixels) -> None:
    other = photo.copy()
    other[100, 100, 2] ^= 1
    assert score(other, photo, border=2).psnr_rgb == pytest.approx(10 * math.log10(255**2 * 296 * 447 * 3), abs=1e-6)


def test_different_sizes_are_refused(photo: Pixels) -> None:
    with pytest.raises(ValueError, match="SR is 450x300 but HR is 451x300 pixels"):
        score(photo[:, :450], photo, border=2)


def test_too_small_images_are_refused(photo: Pixels) -> None:
    score(photo[:15, :15], photo[:15, :15], border=2)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        score(photo[:14, :15], photo[:14, :15], border=2)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        score(photo[:15, :14], photo[:15, :14], border=2)


def test_average_is_the_mean_of_each_value() -> None:
    first = Scores(psnr_y=30, ssim_y=0.5, psnr_rgb=28, ssim_rgb=0.25)
    second = Scores(psnr_y=33, ssim_y=0.75, psnr_rgb=29, ssim_rgb=0.5)
    third = Scores(psnr_y=36, ssim_y=1.0, psnr_rgb=36, ssim_rgb=0.75)
    assert average([first, second, third]) == Scores(psnr_y=33, ssim_y=0.75, psnr_rgb=31, ssim_rgb=0.5)
    assert average([first]) == first
