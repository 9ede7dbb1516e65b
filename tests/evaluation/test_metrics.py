"""PSNR and SSIM against published scores, scikit-image, the formula of SSIM, and values computed by hand."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.lib.stride_tricks import sliding_window_view
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from eco_fast.data.images import Pixels, read_image
from eco_fast.data.resize import modcrop, to_tensor
from eco_fast.evaluation.metrics import SIDE, Scores, average, luma, psnr, read_scores, score, ssim
from tests.helpers import scores_of

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


def y_of(image: Pixels) -> np.ndarray:
    """Luma as numpy computes it."""
    y: np.ndarray = 16 + image.astype(np.float64) @ (np.array((65.481, 128.553, 24.966)) / 255)
    return y


def planes_of(image: np.ndarray) -> Tensor:
    """[H, W] or [H, W, C] as float64 [C, H, W]."""
    return torch.from_numpy(np.atleast_3d(image.astype(np.float64)).transpose(2, 0, 1).copy())


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


def ssim_of_scikit_image(first: np.ndarray, second: np.ndarray) -> float:
    """The map that scikit-image makes, where the window is whole."""
    _, values = structural_similarity(
        first.astype(np.float64),
        second.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        full=True,
        channel_axis=2 if first.ndim == 3 else None,
    )
    return float(values[5:-5, 5:-5].mean())


def test_equals_the_published_scores(shared_data: Path) -> None:
    scores = {}
    for name, (psnr_y, ssim_y) in RCAN_SET5_X2.items():
        hr = modcrop(read_image(shared_data / "benchmark" / "Set5" / "HR" / f"{name}.png"), 2)
        sr = read_image(shared_data / "oracle" / "rcan_set5_x2" / f"{name}_RCAN_x2.png")
        scores[name] = scores_of(sr, hr, border=2)
        assert abs(scores[name].psnr_y - psnr_y) <= LAST_DIGIT, name
        assert abs(scores[name].ssim_y - ssim_y) <= LAST_DIGIT, name
    mean = average(list(scores.values()))
    assert abs(mean.psnr_y - RCAN_SET5_X2_MEAN[0]) <= LAST_DIGIT
    assert abs(mean.ssim_y - RCAN_SET5_X2_MEAN[1]) <= LAST_DIGIT


@pytest.mark.parametrize("size", [(300, 451), (11, 11), (12, 300), (90, 91), (171, 11)], ids=str)
def test_equals_scikit_image_and_the_formula(size: tuple[int, int], photo: Pixels, noisy: Pixels) -> None:
    """Also where blocks end just before, at and behind the last position of the window."""
    height, width = size
    for first, second in (
        (noisy[:height, :width], photo[:height, :width]),
        (y_of(noisy)[:height, :width], y_of(photo)[:height, :width]),
    ):
        planes = planes_of(first), planes_of(second)
        assert psnr(*planes).item() == pytest.approx(peak_signal_noise_ratio(second, first, data_range=255), abs=1e-10)
        assert ssim(*planes).item() == pytest.approx(ssim_by_formula(first, second), abs=1e-12)
        assert ssim(*planes).item() == pytest.approx(ssim_of_scikit_image(first, second), abs=1e-12)


def test_the_size_of_the_blocks_changes_nothing(noisy: Pixels, photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    planes = planes_of(noisy), planes_of(photo)
    values = []
    for side in (1000, 145, 80, 37):
        monkeypatch.setitem(SIDE, "cpu", side)
        values.append(ssim(*planes).item())
    assert max(values) - min(values) < 1e-13


@pytest.mark.parametrize("border", [0, 2, 3, 8])
def test_score_crops_the_border_before_everything(photo: Pixels, noisy: Pixels, border: int) -> None:
    inside = (slice(border, 300 - border), slice(border, 451 - border))
    sr, hr = noisy[inside], photo[inside]
    damaged = noisy.copy()
    damaged[:border], damaged[300 - border :], damaged[:, :border], damaged[:, 451 - border :] = 0, 255, 0, 255
    scores = scores_of(damaged, photo, border).as_dict()
    expected = {
        "psnr_y": peak_signal_noise_ratio(y_of(hr), y_of(sr), data_range=255),
        "ssim_y": ssim_of_scikit_image(y_of(sr), y_of(hr)),
        "psnr_rgb": peak_signal_noise_ratio(hr, sr, data_range=255),
        "ssim_rgb": ssim_of_scikit_image(sr, hr),
    }
    assert scores == pytest.approx(expected, abs=1e-10)
    assert list(scores) == list(expected)


def test_y_alone_is_the_same_and_all_there_is(photo: Pixels, noisy: Pixels) -> None:
    both = scores_of(noisy, photo, 2)
    values = score(to_tensor(noisy), to_tensor(photo), 2, rgb=False)
    (alone,) = read_scores({"image": values}).values()
    assert alone == Scores(psnr_y=both.psnr_y, ssim_y=both.ssim_y)
    assert alone.as_dict() == {"psnr_y": both.psnr_y, "ssim_y": both.ssim_y}
    assert average([alone, alone]) == alone
    assert read_scores({}) == {}


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
    assert luma(torch.tensor([[colour]], dtype=torch.uint8)).item() == pytest.approx(expected, abs=1e-12)


def test_luma_is_not_rounded(photo: Pixels) -> None:
    values = luma(to_tensor(photo))
    assert values.dtype == torch.float64
    np.testing.assert_allclose(values, y_of(photo), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("difference", "expected"), [(1, 48.130804), (5, 34.151404), (255, 0.0)])
def test_psnr_by_hand(difference: int, expected: float) -> None:
    zeros = torch.zeros(4, 4, 3, dtype=torch.uint8)  # 20 * log10(255 / difference)
    assert psnr(zeros, zeros + difference).item() == pytest.approx(expected, abs=1e-6)
    assert psnr(zeros + difference, zeros).item() == pytest.approx(expected, abs=1e-6)


def test_ssim_of_two_constants_by_hand() -> None:
    # Both variances are 0: only the term of the means remains.
    black, grey = torch.zeros(11, 11, dtype=torch.float64), torch.full((11, 11), 100.0, dtype=torch.float64)
    assert ssim(black, grey).item() == pytest.approx(2.55**2 / (100**2 + 2.55**2), abs=1e-12)


def test_identical_images_score_inf_and_one(photo: Pixels) -> None:
    scores = scores_of(photo, photo.copy(), border=2)
    assert scores.psnr_y == scores.psnr_rgb == math.inf
    assert scores.ssim_y == pytest.approx(1, abs=1e-12)
    assert scores.ssim_rgb == pytest.approx(1, abs=1e-12)


def test_one_differing_pixel_is_not_inf(photo: Pixels) -> None:
    other = photo.copy()
    other[100, 100, 2] ^= 1
    expected = 10 * math.log10(255**2 * 296 * 447 * 3)
    assert scores_of(other, photo, border=2).psnr_rgb == pytest.approx(expected, abs=1e-6)


def test_different_sizes_are_refused(photo: Pixels) -> None:
    with pytest.raises(ValueError, match="SR is 450x300 but HR is 451x300 pixels"):
        scores_of(photo[:, :450], photo, border=2)


def test_too_small_images_are_refused(photo: Pixels) -> None:
    scores_of(photo[:15, :15], photo[:15, :15], border=2)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        scores_of(photo[:14, :15], photo[:14, :15], border=2)
    with pytest.raises(ValueError, match="at least 11 pixels"):
        scores_of(photo[:15, :14], photo[:15, :14], border=2)


def test_average_is_the_mean_of_each_value() -> None:
    first = Scores(psnr_y=30, ssim_y=0.5, psnr_rgb=28, ssim_rgb=0.25)
    second = Scores(psnr_y=33, ssim_y=0.75, psnr_rgb=29, ssim_rgb=0.5)
    third = Scores(psnr_y=36, ssim_y=1.0, psnr_rgb=36, ssim_rgb=0.75)
    assert average([first, second, third]) == Scores(psnr_y=33, ssim_y=0.75, psnr_rgb=31, ssim_rgb=0.5)
    assert average([first]) == first
