"""`eco-fast downsample`: LR folders as MATLAB makes them, without MATLAB."""

from pathlib import Path

from eco_fast_kernels import Rounding
from rich.progress import track

from eco_fast.config import Scale
from eco_fast.data.images import write_png
from eco_fast.data.noise import DRAWS, noisy_pictures
from eco_fast.data.resize import downsample_image, read_cropped
from eco_fast.inference.upscale import outputs


def downsample(
    source: Path, out: Path, scale: Scale, *, rounding: Rounding = "uint8", noise_sigma: float = 0.0
) -> list[Path]:
    """Write `imresize(picture, 1/scale, "bicubic")` of a picture or folder as PNG files of the same names.

    As for all LR sets of the field, a picture is first cropped to a multiple of the scale, at its bottom and right.

    Args:
        source: a picture or a folder.
        out: the PNG to write for a picture (or a folder to put it in), the folder for a folder.
        scale: how many times smaller.
        rounding: MATLAB's convention.
        noise_sigma: standard deviation of noise on the pictures, in grey levels. Above 0, `out` is a folder, and gets a
            folder for each draw that scores are averaged over: draw-00 to draw-09.

    Returns:
        The files written.

    Raises:
        ValueError: a bad picture or output; names it.
    """
    if noise_sigma and out.suffix.lower() == ".png":
        raise ValueError(f"{out}: each picture has {DRAWS} noises, which go to a folder each; name a folder for them")
    folders = [out / f"draw-{draw:02}" for draw in range(DRAWS)] if noise_sigma else [out]
    targets = [outputs(source, folder) for folder in folders]
    for path in track(list(targets[0]), description="downsample"):
        pictures = noisy_pictures(downsample_image(read_cropped(path, scale), scale, rounding), noise_sigma)
        for draw, lr in zip(targets, pictures, strict=True):
            write_png(draw[path], lr)
    return [target for draw in targets for target in draw.values()]
