"""`eco-fast downsample`: LR folders as MATLAB makes them, without MATLAB."""

from pathlib import Path

from eco_fast_kernels import Rounding

from eco_fast.bicubic import downsample_image, read_cropped
from eco_fast.config import Scale
from eco_fast.images import write_png
from eco_fast.progress import progress
from eco_fast.upscale import outputs


def downsample(source: Path, out: Path, scale: Scale, *, rounding: Rounding = "uint8") -> list[Path]:
    """Write `imresize(picture, 1/scale, "bicubic")` of a picture or folder as PNG files of the same names.

    As for all LR sets of the field, a picture is first cropped to a multiple of the scale, at its bottom and right.

    Returns:
        The files written.

    Raises:
        ValueError: a bad picture or output; names it.
    """
    targets = outputs(source, out)
    for path, target in progress(list(targets.items()), "downsample"):
        write_png(target, downsample_image(read_cropped(path, scale), scale, rounding))
    return list(targets.values())
