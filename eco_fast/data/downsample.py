"""`eco-fast downsample`: LR folders as MATLAB makes them, without MATLAB."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from eco_fast_kernels import Rounding, imresize

from eco_fast.config import Scale
from eco_fast.data.images import Pixels, prefix_errors, read_whole, write_whole
from eco_fast.data.noise import NOISE_DRAWS, noisy_images
from eco_fast.data.output_paths import output_paths
from eco_fast.data.resize import downsample_image, modcrop, to_pixels, to_tensor
from eco_fast.utils.progress import track


def downsample(
    source: Path, out: Path, scale: Scale, *, rounding: Rounding = "uint8", noise_sigma: float = 0.0
) -> list[Path]:
    """Write `imresize(image, 1/scale, "bicubic")` of an image or folder as PNG files of the same names.

    As for all LR sets of the field, an image is first cropped to a multiple of the scale, at its bottom and right.
    Transparency is resized as the colours are; it and the colour profile go into the file.

    Args:
        source: an image or a folder.
        out: the PNG to write for an image (or a folder to put it in), the folder for a folder.
        scale: how many times smaller.
        rounding: MATLAB's convention.
        noise_sigma: standard deviation of noise on the images, in grey levels. Above 0, `out` is a folder, and gets a
            folder for each draw that scores are averaged over: draw-00 to draw-09.

    Returns:
        The files written.

    Raises:
        ValueError: a bad image or output; names it.
    """
    if noise_sigma and out.suffix.lower() == ".png":
        raise ValueError(f"{out}: each image has {NOISE_DRAWS} noises, which go to a folder each; name a folder")
    folders = [out / f"draw-{draw:02}" for draw in range(NOISE_DRAWS)] if noise_sigma else [out]
    targets = output_paths(source, folders)
    for path in track(list(targets[0]), description="downsample"):
        hr = read_whole(path)
        hr.say_what_is_lost(path)
        with prefix_errors(path):
            (lr,) = imresize(to_tensor(modcrop(hr.colours, scale))[None], scale, rounding)
        opacity = None if hr.opacity is None else _smaller(modcrop(hr.opacity, scale), scale, rounding)
        for draw, noisy in zip(targets, noisy_images(lr, noise_sigma), strict=True):
            write_whole(draw[path], replace(hr, colours=to_pixels(noisy), opacity=opacity))
    return [target for draw in targets for target in draw.values()]


def _smaller(opacity: Pixels, scale: int, rounding: Rounding) -> Pixels:
    as_grey = np.repeat(opacity[:, :, None], 3, axis=2)  # the op takes three channels
    return downsample_image(as_grey, scale, rounding)[:, :, 0]
