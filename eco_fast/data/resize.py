"""Bicubic resizing of whole images as MATLAB does it: down for LR images, up as the tables' baseline."""

from pathlib import Path

import numpy as np
import torch
from eco_fast_kernels import Rounding, imresize, symmetric_indices
from torch import Tensor

from eco_fast.data.images import Pixels, prefix_errors, read_image


def modcrop(image: Pixels, scale: int) -> Pixels:
    """Crop the bottom and right so that both sides are multiples of the scale.

    Raises:
        ValueError: the image is smaller than the scale.
    """
    height, width = image.shape[0] // scale * scale, image.shape[1] // scale * scale
    if not height or not width:
        raise ValueError(f"an image of {image.shape[1]}x{image.shape[0]} pixels is smaller than the scale {scale}")
    return image[:height, :width]


def read_cropped(path: Path, scale: int) -> Pixels:
    """Decode an image and `modcrop` it; every error names the file."""
    image = read_image(path)
    with prefix_errors(path):
        return modcrop(image, scale)


def downsample_image(image: Pixels, scale: int, rounding: Rounding = "uint8") -> Pixels:
    """`imresize(image, 1/scale, "bicubic")`: uint8 [H, W, C] to uint8 [ceil(H/scale), ceil(W/scale), C]."""
    return imresize(torch.from_numpy(np.array(image))[None], scale, rounding)[0].numpy()


def upsample(images: Tensor, scale: int, rounding: Rounding = "uint8") -> Tensor:
    """MATLAB's `imresize(A, scale, "bicubic")`.

    Args:
        images: uint8 [N, H, W, C].
        scale: any whole number from 1.
        rounding: "uint8" rounds after each of the two passes, "im2double" once.

    Returns:
        uint8 [N, scale*H, scale*W, C].
    """
    result = images.double()
    for axis in (1, 2):
        result = _upsample_axis(result, axis, scale)
        if rounding == "uint8" or axis == 2:
            # Half up. Weights are multiples of a power of two (x2, x4, x8: exact) or of 1/27 (x3: no ties exist).
            result = (result + 0.5).floor().clamp(0, 255)
    return result.to(torch.uint8)


def upsample_image(image: Pixels, scale: int, rounding: Rounding = "uint8") -> Pixels:
    """`upsample` of one uint8 [H, W, C] image."""
    return upsample(torch.from_numpy(np.array(image))[None], scale, rounding)[0].numpy()


def _upsample_axis(images: Tensor, axis: int, scale: int) -> Tensor:
    size = images.shape[axis]
    centre = (np.arange(scale * size) + 0.5) / scale - 0.5  # where each output pixel lies, in input pixels
    first = np.floor(centre).astype(np.int64) - 1
    indices = symmetric_indices(-2, size + 2, size)
    weights = np.stack([_keys(centre - (first + tap)) for tap in range(4)])
    weights /= weights.sum(axis=0)
    shape = [1] * images.ndim
    shape[axis] = -1
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    for tap in range(4):
        source = torch.from_numpy(indices[first + tap + 2]).to(images.device)
        weight = torch.from_numpy(weights[tap]).to(images.device).view(shape)
        total = total + images.index_select(axis, source) * weight
    return total


def _keys(distance: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -0.5, support 4."""
    x = np.abs(distance)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0.0))
