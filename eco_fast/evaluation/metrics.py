"""PSNR and SSIM as the SR tables define them.

Both images are cropped by `border` pixels a side first. Y is the float luma of ITU-R BT.601 on the 16..235 scale, not
rounded. SSIM: 11x11 Gaussian window of sigma 1.5, valid positions only, biased variances, K = (0.01, 0.03), L = 255.
These are the formulas of MATLAB's `rgb2ycbcr`, of the EDSR and RCAN papers' scripts and of Wang et al. (2004).
"""

import statistics
from dataclasses import asdict, dataclass, fields

import numpy as np
import torch
from torch import Tensor

from eco_fast.data.images import Pixels

LUMA = (65.481, 128.553, 24.966)
WINDOW = 11
SIGMA = 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True, kw_only=True)
class Scores:
    """PSNR in dB (inf for identical images) and SSIM of one image, or their means over a set."""

    psnr_y: float
    ssim_y: float
    psnr_rgb: float
    ssim_rgb: float

    def as_dict(self) -> dict[str, float]:
        """The four values by name."""
        return asdict(self)


def luma(image: Pixels) -> np.ndarray:
    """Y of uint8 [H, W, 3] RGB: float64 [H, W], 16..235."""
    return 16 + image.astype(np.float64) @ (np.array(LUMA) / 255)


def psnr(first: np.ndarray, second: np.ndarray) -> float:
    """PSNR in dB of two arrays on the 0..255 scale."""
    error = np.mean((first.astype(np.float64) - second.astype(np.float64)) ** 2)
    return float(10 * np.log10(255**2 / error)) if error else float("inf")


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM of two [H, W] or [H, W, C] arrays on the 0..255 scale, averaged over channels.

    Raises:
        ValueError: a side is shorter than the window of 11 pixels.
    """
    if min(first.shape[:2]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} pixels a side after the border is cropped, got {first.shape}")
    channels = zip(np.atleast_3d(first).transpose(2, 0, 1), np.atleast_3d(second).transpose(2, 0, 1), strict=True)
    return float(np.mean([_ssim_of_planes(x, y) for x, y in channels]))  # one by one: a plane fits into the cache


def score(sr: Pixels, hr: Pixels, border: int) -> Scores:
    """Score uint8 [H, W, 3] SR against HR; `border` is the scale in the SR tables.

    Raises:
        ValueError: sizes differ or are too small.
    """
    if sr.shape != hr.shape:
        raise ValueError(
            f"SR is {sr.shape[1]}x{sr.shape[0]} but HR is {hr.shape[1]}x{hr.shape[0]} pixels; "
            "they must have the same size after both are cropped to a multiple of the scale"
        )
    inside = (slice(border, sr.shape[0] - border), slice(border, sr.shape[1] - border))
    sr, hr = sr[inside], hr[inside]
    sr_y, hr_y = luma(sr), luma(hr)
    return Scores(psnr_y=psnr(sr_y, hr_y), ssim_y=ssim(sr_y, hr_y), psnr_rgb=psnr(sr, hr), ssim_rgb=ssim(sr, hr))


def average(scores: list[Scores]) -> Scores:
    """Mean of each value over the images of a set, in whatever order, as the tables report."""
    names = [field.name for field in fields(Scores)]
    return Scores(**{name: statistics.fmean(getattr(one, name) for one in scores) for name in names})


def _ssim_of_planes(first: np.ndarray, second: np.ndarray) -> float:
    """SSIM of two [H, W] arrays."""
    x, y = (torch.from_numpy(plane.astype(np.float64, order="C")) for plane in (first, second))
    mean_x, mean_y, square_x, square_y, product = (_smooth(plane) for plane in (x, y, x * x, y * y, x * y))
    squares, products = mean_x**2 + mean_y**2, mean_x * mean_y
    similarity = ((2 * products + C1) * (2 * (product - products) + C2)) / (
        (squares + C1) * (square_x + square_y - squares + C2)
    )
    return float(similarity.mean())


def _smooth(plane: Tensor) -> Tensor:
    """Gaussian means at the valid positions, as sums of shifted planes: no fast convolution takes float64."""
    position = torch.arange(WINDOW // 2 + 1, dtype=torch.float64)
    window = torch.exp(-(position**2) / (2 * SIGMA**2))
    window /= 2 * window.sum() - window[0]
    centre = WINDOW // 2
    for axis in (-2, -1):
        size = plane.shape[axis] - WINDOW + 1
        total = plane.narrow(axis, centre, size) * window[0]
        for distance, weight in enumerate(window[1:].tolist(), 1):
            pair = plane.narrow(axis, centre - distance, size) + plane.narrow(axis, centre + distance, size)
            total.add_(pair, alpha=weight)
        plane = total
    return plane
