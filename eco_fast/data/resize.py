"""Whole images: cropped, moved to a device and back, and resized as MATLAB does it, bicubically.

Down for LR images (on a device: `eco_fast_kernels.imresize`), up as the tables' baseline.
"""

from pathlib import Path

import numpy as np
import torch
from eco_fast_kernels import Rounding, imresize
from eco_fast_kernels.downsampling import fold
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


def to_tensor(image: Pixels, device: str | torch.device = "cpu") -> Tensor:
    """An image on a device, uint8 [H, W, 3].

    To a GPU it goes through page-locked memory, which the host does not wait for; on a CPU it may share the array's.
    """
    if torch.device(device).type == "cpu":
        return torch.from_numpy(np.require(image, requirements=("C", "W")))
    host = torch.empty(image.shape, dtype=torch.uint8, pin_memory=True)
    host.numpy()[:] = image
    return host.to(device, non_blocking=True)


def to_pixels(image: Tensor) -> Pixels:
    """An image from a device; waits for it."""
    if image.device.type == "cpu":
        return image.numpy()
    host = torch.empty(image.shape, dtype=image.dtype, pin_memory=True)
    return host.copy_(image).numpy()


def downsample_image(image: Pixels, scale: int, rounding: Rounding = "uint8") -> Pixels:
    """`imresize(image, 1/scale, "bicubic")`: uint8 [H, W, C] to uint8 [ceil(H/scale), ceil(W/scale), C]."""
    return imresize(to_tensor(image)[None], scale, rounding)[0].numpy()


def upsample(images: Tensor, scale: int, rounding: Rounding = "uint8") -> Tensor:
    """MATLAB's `imresize(A, scale, "bicubic")`, on the device of the images.

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


def _upsample_axis(images: Tensor, axis: int, scale: int) -> Tensor:
    size = images.shape[axis]
    shape = [1] * images.ndim
    shape[axis] = -1
    outputs = torch.arange(scale * size, dtype=torch.float64, device=images.device)
    centre = (outputs + 0.5) / scale - 0.5  # where each output pixel lies, in input pixels
    first = centre.floor() - 1
    weights = torch.stack([_keys(centre - (first + tap)) for tap in range(4)])
    weights /= weights.sum(dim=0)
    total = torch.zeros((), dtype=images.dtype, device=images.device)
    for tap, weight in enumerate(weights):
        source = fold(first.long() + tap, size)
        total = total + images.index_select(axis, source) * weight.view(shape)
    return total


def _keys(distance: Tensor) -> Tensor:
    """Keys' cubic convolution kernel with a = -0.5, support 4."""
    x = distance.abs()
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return torch.where(x <= 1, near, torch.where(x <= 2, far, 0.0))
