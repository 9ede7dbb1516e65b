"""Gaussian noise: the values that training and scoring share, and the noisy test images of the paper's Table 2 (c).

The noise of a test image depends on the image alone. Every network is scored on the same noisy images, by this
program or, from the files of `eco-fast downsample --noise-sigma`, by any other.
"""

import hashlib
import math
from collections.abc import Iterator
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from torch import Tensor

from eco_fast.data.images import Pixels
from eco_fast.data.resize import to_pixels, to_tensor

NOISE_DRAWS = 10  # of noise, that scores are averaged over (paper, Appendix D)

Float = TypeVar("Float", np.float32, np.float64)


def standard_normal(words: npt.NDArray[np.uint64], kind: type[Float]) -> npt.NDArray[Float]:
    """Turn random words into two independent standard normal values each, [2 * len(words)] (Box and Muller).

    Args:
        words: [N], of 64 random bits: two uniform numbers of 32 bits, the first in (0, 1].
        kind: float32, or float64 where the values must be the same on all machines once they are rounded.
    """
    radius = np.sqrt(-2 * np.log(((words >> np.uint64(32)) + 1).astype(kind) * kind(2.0**-32)))
    angle = (words & np.uint64(0xFFFFFFFF)).astype(kind) * kind(2 * math.pi * 2.0**-32)
    values: npt.NDArray[Float] = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return values


def add_noise(lr: Pixels, sigma: float, draw: int) -> Pixels:
    """A test image with zero-mean colour Gaussian noise, as a file of 8 bits holds it (paper, Appendix D).

    The values come from Philox's raw words, keyed by the SHA-256 of the pixels.

    Args:
        lr: uint8 [H, W, 3].
        sigma: standard deviation in grey levels, from 0.
        draw: which of the image's noises, from 0.

    Returns:
        uint8 [H, W, 3], rounded and clipped to 0..255.

    Raises:
        ValueError: sigma is negative or not finite.
    """
    if not 0 <= sigma < math.inf:
        raise ValueError(f"the noise's sigma is a number of grey levels from 0, got {sigma}")
    key = int.from_bytes(hashlib.sha256(lr.tobytes()).digest()[:16], "little")
    # Each draw owns a stretch of 2**64 counter values: draws can never overlap.
    words = np.random.Philox(key=key, counter=[0, draw, 0, 0]).random_raw(-(-lr.size // 2))
    values = standard_normal(words, np.float64)[: lr.size].reshape(lr.shape)
    return np.rint(lr + sigma * values).clip(0, 255).astype(np.uint8)


def noisy_images(lr: Tensor, sigma: float, draws: int = NOISE_DRAWS) -> Iterator[Tensor]:
    """The first draws of a test image, on its device; with a sigma of 0, the image itself, once.

    The noise is made on the CPU, so that its bytes are the same on all machines: a GPU is waited for once.
    """
    if not sigma:
        return iter([lr])
    pixels = to_pixels(lr)
    return (to_tensor(add_noise(pixels, sigma, draw), lr.device) for draw in range(draws))


def describe_noise(sigma: float) -> str:
    """How noisy images were scored, for the title of a table."""
    return f"with Gaussian noise of sigma {sigma:g}, scores averaged over {NOISE_DRAWS} draws"


def noise_metadata(sigma: float) -> dict[str, float]:
    """The same for JSON; nothing without noise."""
    return {"noise_sigma": sigma, "noise_draws": NOISE_DRAWS} if sigma else {}
