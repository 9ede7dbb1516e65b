"""PSNR and SSIM as the SR tables define them.

Both images are cropped by `border` pixels a side first. Y is the float luma of ITU-R BT.601 on the 16..235 scale, not
rounded. SSIM: 11x11 Gaussian window of sigma 1.5, valid positions only, biased variances, K = (0.01, 0.03), L = 255.
These are the formulas of MATLAB's `rgb2ycbcr`, of the EDSR and RCAN papers' scripts and of Wang et al. (2004).
"""

import statistics
from dataclasses import asdict, dataclass, fields

import numpy as np
from skimage.metrics import structural_similarity

from eco_fast.data.images import Pixels

LUMA = (65.481, 128.553, 24.966)
WINDOW = 11  # of SSIM


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
        ValueError: a side is shorter than the window's 11 pixels.
    """
    if min(first.shape[:2]) < WINDOW:
        raise ValueError(f"SSIM needs at least {WINDOW} pixels a side after the border is cropped, got {first.shape}")
    mean = structural_similarity(  # type: ignore[no-untyped-call]
        first.astype(np.float64),
        second.astype(np.float64),
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
        data_range=255,
        channel_axis=2 if first.ndim == 3 else None,
    )
    return float(mean)


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
