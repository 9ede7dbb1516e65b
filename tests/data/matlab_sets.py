"""Images with the LR images that MATLAB makes of them, in the layout of the benchmark sets; some are in the repository.

`matlab/` holds crops of photographs that come with scikit-image (see its README.md). Their LR images are made by
`imresize` below: MATLAB's formula in whole numbers, which shares nothing with eco-fast. A test of `test_resize.py`
compares it with MATLAB's own files of Set5 and Set14, where there are any; all are equal to the byte.

    python -m tests.data.matlab_sets    # writes matlab/ anew
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from eco_fast_kernels import Rounding

from eco_fast.data.folders import builtin_images
from eco_fast.data.images import Pixels, read_image, write_png

IN_REPOSITORY = Path(__file__).parent / "matlab"
CORNERS = {"astronaut": (90, 180), "chelsea": (60, 120), "coffee": (150, 250)}  # of the crops
SIZE = (72, 96)  # a multiple of every scale
SCALES = (2, 3, 4, 8)


def rounding_of(scale: int) -> Rounding:
    """The convention that the field's files of a scale follow."""
    return "im2double" if scale == 8 else "uint8"


def matlab_files(folder: Path, scale: int) -> list[tuple[Path, Path]]:
    """(HR, LR) files of a set."""
    files = sorted((folder / "HR").glob("*.png"))
    assert files
    return [(hr, folder / "LR_bicubic" / f"X{scale}" / f"{hr.stem}x{scale}.png") for hr in files]


def imresize(image: Pixels, scale: int, rounding: Rounding) -> Pixels:
    """`imresize(image, 1/scale, "bicubic")` of uint8 [H, W, C], sides multiples of the scale: exact, half up."""
    total, divisor = image.astype(np.int64), 1
    for axis in (0, 1):
        weights, sources = stencil(image.shape[axis], scale)
        taps = np.moveaxis(np.moveaxis(total, axis, 0)[sources], 1, -1)  # [outputs, the other side, C, taps]
        total = np.moveaxis((taps * weights).sum(axis=-1), 0, axis)
        divisor *= int(weights.sum())
        if rounding == "uint8" or axis == 1:
            total, divisor = ((2 * total + divisor) // (2 * divisor)).clip(0, 255), 1
    return total.astype(np.uint8)


def stencil(size: int, scale: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Whole-number weights [taps] and places in the input [outputs, taps].

    Keys' kernel with a = -1/2, stretched by the scale, at distances that are multiples of 1 / unit, times 2 * unit^3.
    """
    unit = 2 * scale
    first = np.arange(size // scale)[:, None] * scale + (scale - 1) // 2 - 2 * scale  # left of the first tap, or on it
    places = first + np.arange(4 * scale + 2)
    away = np.abs((scale - 1) - 2 * places[0])
    near = 3 * away**3 - 5 * away**2 * unit + 2 * unit**3
    far = -(away**3) + 5 * away**2 * unit - 8 * away * unit**2 + 4 * unit**3
    weights = np.select([away <= unit, away <= 2 * unit], [near, far], 0)
    there_and_back = np.concatenate([np.arange(size), np.arange(size)[::-1]])
    return weights, there_and_back[places % (2 * size)]


def main() -> None:
    photos = dict(builtin_images("test"))
    for name, (top, left) in CORNERS.items():
        crop = read_image(photos[f"builtin/{name}.png"])[top : top + SIZE[0], left : left + SIZE[1]]
        write_png(IN_REPOSITORY / "HR" / f"{name}.png", crop)
        for scale in SCALES:
            lr = imresize(crop, scale, rounding_of(scale))
            write_png(IN_REPOSITORY / "LR_bicubic" / f"X{scale}" / f"{name}x{scale}.png", lr)


if __name__ == "__main__":
    main()
