"""PSNR and SSIM as the SR tables define them, as torch ops: one implementation for every device, in float64.

Both images are cropped by `border` pixels a side first. Y is the float luma of ITU-R BT.601 on the 16..235 scale, not
rounded. SSIM: 11x11 Gaussian window of sigma 1.5, valid positions only, biased variances, K = (0.01, 0.03), L = 255.
These are the formulas of MATLAB's `rgb2ycbcr`, of the EDSR and RCAN papers' scripts and of Wang et al. (2004).
"""

import itertools
import math
import statistics
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

LUMA = (65.481, 128.553, 24.966)
WINDOW = 11  # of SSIM
SIGMA = 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
SIDE = {"cpu": 80, "cuda": 4096}
"""Positions a side whose SSIM is made at once. On a CPU they stay in a core's cache, and are so few that torch takes
one thread: several would mostly wait for each other."""


@dataclass(frozen=True, kw_only=True)
class Scores:
    """PSNR in dB (inf for identical images) and SSIM of one image, or their means over a set."""

    psnr_y: float
    ssim_y: float
    psnr_rgb: float | None = None
    """None, as `ssim_rgb`, where Y alone was asked for."""
    ssim_rgb: float | None = None

    def as_dict(self) -> dict[str, float]:
        """The values that were asked for, by name."""
        return {name: value for name, value in asdict(self).items() if value is not None}


MEASURES = tuple(Scores.__dataclass_fields__)


def luma(image: Tensor) -> Tensor:
    """Y of uint8 [H, W, 3] RGB: float64 [H, W], 16..235."""
    red, green, blue = (weight / 255 for weight in LUMA)
    y = image[..., 0].double() * red
    return y.add_(image[..., 1], alpha=green).add_(image[..., 2], alpha=blue).add_(16)


def psnr(first: Tensor, second: Tensor) -> Tensor:
    """PSNR in dB of two tensors on the 0..255 scale: float64 []; inf where they are equal."""
    error = (first.double() - second.double()).square_().mean()
    return 10 * (255**2 / error).log10()


def ssim(first: Tensor, second: Tensor) -> Tensor:
    """SSIM of two float64 [..., H, W] on the 0..255 scale, averaged over the planes: float64 [].

    Raises:
        ValueError: a side is shorter than the window's 11 pixels.
    """
    height, width = first.shape[-2:]
    planes = list(zip(first.reshape(-1, height, width), second.reshape(-1, height, width), strict=True))
    if min(height, width) < WINDOW:
        raise ValueError(
            f"SSIM needs at least {WINDOW} pixels a side after the border is cropped, got {height}x{width}"
        )
    total = torch.zeros((), dtype=torch.float64, device=first.device)
    reach, side = WINDOW - 1, SIDE[first.device.type]
    corners = itertools.product(range(0, height - reach, side), range(0, width - reach, side))
    for (top, left), (x, y) in itertools.product(corners, planes):
        block = (slice(top, top + side + reach), slice(left, left + side + reach))
        total += _ssim_map(x[block], y[block]).sum()
    return total / (len(planes) * (height - reach) * (width - reach))


def score(sr: Tensor, hr: Tensor, border: int, *, rgb: bool = True) -> Tensor:
    """Score uint8 [H, W, 3] SR against HR on their device, without waiting for it.

    Args:
        sr: the network's image.
        hr: the one that it should be.
        border: pixels a side that do not count; the scale in the SR tables.
        rgb: also over the three colours, which takes three times as long.

    Returns:
        float64 [4], or [2] without `rgb`: the values of `Scores` in their order; see `read_scores`.

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
    planes = [(luma(sr), luma(hr))]
    if rgb:
        planes.append((sr.permute(2, 0, 1).double(), hr.permute(2, 0, 1).double()))
    return torch.stack([measure(*pair) for pair in planes for measure in (psnr, ssim)])


def read_scores(values: Mapping[str, Tensor]) -> dict[str, Scores]:
    """What `score` has made of several images, read back from the device at once."""
    rows = torch.stack(list(values.values())).tolist() if values else []
    return {name: Scores(**dict(zip(MEASURES, row, strict=False))) for name, row in zip(values, rows, strict=True)}


def average(scores: list[Scores]) -> Scores:
    """Mean of each value over the images of a set, in whatever order, as the tables report."""
    rows = [one.as_dict() for one in scores]
    return Scores(**{name: statistics.fmean(row[name] for row in rows) for name in rows[0]})


def _ssim_map(x: Tensor, y: Tensor) -> Tensor:
    """The formula at every position of the window in [H, W]: [H - 10, W - 10]."""
    means = torch.stack([x, y, x * x + y * y, x * y])
    for axis in (1, 2):
        means = _blur(means, axis)
    mean_x, mean_y, squares, product = means
    product_of_means, squares_of_means = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
    similar = (2 * product_of_means + C1) * (2 * (product - product_of_means) + C2)
    ssim_map: Tensor = similar / ((squares_of_means + C1) * (squares - squares_of_means + C2))
    return ssim_map


def _blur(planes: Tensor, axis: int) -> Tensor:
    """Means under a Gaussian window along an axis, which loses the window's length less one."""
    weights = [math.exp(-((tap - WINDOW // 2) ** 2) / (2 * SIGMA**2)) for tap in range(WINDOW)]
    length = planes.shape[axis] - WINDOW + 1
    total = planes.narrow(axis, 0, length) * (weights[0] / sum(weights))
    for tap, weight in enumerate(weights[1:], start=1):
        total.add_(planes.narrow(axis, tap, length), alpha=weight / sum(weights))
    return total
