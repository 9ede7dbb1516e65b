"""D, MATLAB's `imresize(A, 1/scale, "bicubic")`, in plain torch: its definition, and the path that CPU tensors take.

**Why D is exact.** For whole scales MATLAB's antialiased bicubic weights are rationals with a small common denominator
(`STENCILS`), the same for every output pixel. Pixels are centred by subtracting 128, so each partial sum of
weight * pixel is a whole number below 2**24 for one pass (2**53 for two): float32 (float64) holds all of them, in any
order of summation, with or without fused multiply-add. The division is exact for powers of two; at scale 3 no sum lies
nearer than 1/162 to a rounding tie. So every implementation of this formula gives the same bytes.

Source: MATLAB's `imresize` (kernel a = -0.5, antialiasing, symmetric border, rows first, 8-bit images are rounded half
up after each of the two passes).
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Rounding = Literal["uint8", "im2double"]

ROUNDINGS: tuple[Rounding, ...] = ("uint8", "im2double")

# Left half of the symmetric stencil (scale 3 ends with its centre tap), and the denominator that all weights share.
STENCILS: dict[int, tuple[tuple[int, ...], int]] = {
    2: ((-3, -9, 29, 111), 256),
    3: ((-1, -2, 0, 9, 21, 27), 81),
    4: ((-7, -45, -75, -49, 93, 399, 745, 987), 4096),
    8: (
        (-15, -117, -275, -441, -567, -605, -507, -225, 317, 1263, 2505, 3899, 5301, 6567, 7553, 8115),
        65536,
    ),
}


def margin_of(scale: int) -> int:
    """HR pixels that a crop needs beyond each side, so that D inside it needs nothing else: 2 * scale."""
    return 2 * scale


def crop_side(scale: int, patch: int) -> int:
    """HR pixels of a side of the square crop, margins included, that D turns into `patch` pixels a side."""
    return scale * patch + 2 * margin_of(scale)


def symmetric_indices(start: int, stop: int, size: int) -> npt.NDArray[np.int64]:
    """Where positions `start..stop-1` fall in an axis of `size` pixels: MATLAB's symmetric border, edge repeated."""
    folded = np.arange(start, stop, dtype=np.int64) % (2 * size)
    return np.where(folded < size, folded, 2 * size - 1 - folded)


def downsample(crops: Tensor, scale: int, rounding: Rounding = "uint8", transposed: Tensor | None = None) -> Tensor:
    """D of crops that carry a margin of `2 * scale` pixels on each side.

    Args:
        crops: uint8 [N, scale*h + 4*scale, scale*w + 4*scale, C].
        scale: 2, 3, 4 or 8.
        rounding: "uint8" rounds after each pass (MATLAB on 8-bit images), "im2double" once at the end.
        transposed: bool [N], the samples whose rows and columns the loader has swapped. MATLAB rounds between the two
            passes, so those are downsampled columns first; needs square crops.

    Returns:
        uint8 [N, h, w, C], equal to the same crop of D of the whole image.
    """
    check_crops("downsample", crops, scale, rounding, transposed)
    channels = crops.shape[3]
    centred = crops.flatten(2).to(torch.float32 if rounding == "uint8" else torch.float64) - 128
    if rounding == "im2double":  # exact up to its only rounding, in either order of the passes
        out = _round(_pass_columns(_pass_rows(centred, scale), scale, channels), scale, passes=2)
    else:
        out = _round(_pass_columns(_round(_pass_rows(centred, scale), scale), scale, channels), scale)
        if transposed is not None:
            columns_first = _round(_pass_rows(_round(_pass_columns(centred, scale, channels), scale), scale), scale)
            out = torch.where(transposed.view(-1, 1, 1), columns_first, out)
    out = (out + 128).to(torch.uint8)
    # One pixel of `scale` is picked from memory: sums over pixels that lie apart would be no work for vectors, so a
    # compiler must not push this step into them, as it would with any other kind of view.
    height, width = (size // scale - 4 for size in crops.shape[1:3])
    picked = out.as_strided((len(out), height, width, channels), (*out.stride()[:2], channels * scale, 1))
    return picked.contiguous()


def imresize(images: Tensor, scale: int, rounding: Rounding = "uint8") -> Tensor:
    """MATLAB's `imresize(A, 1/scale, "bicubic")` of whole images of any size.

    Args:
        images: uint8 [N, H, W, C].
        scale: 2, 3, 4 or 8.
        rounding: see `downsample`.

    Returns:
        uint8 [N, ceil(H / scale), ceil(W / scale), C].
    """
    return downsample(with_margin(images, scale), scale, rounding)


def with_margin(images: Tensor, scale: int) -> Tensor:
    """Whole images as crops: extended symmetrically to a multiple of the scale, and by the margin on each side."""
    for axis in (1, 2):
        size = images.shape[axis]
        covered = -(-size // scale) * scale
        places = torch.arange(-margin_of(scale), covered + margin_of(scale), device=images.device)
        images = images.index_select(axis, fold(places, size))
    return images


def fold(places: Tensor, size: int) -> Tensor:
    """`symmetric_indices` of any places, int64, where they are: nothing is copied to the device."""
    folded = places % (2 * size)
    return torch.minimum(folded, 2 * size - 1 - folded)


def _pass_rows(values: Tensor, scale: int) -> Tensor:
    """Weighted sums (before the division) of the rows [N, scale*h + 4*scale, ...]: [N, h, ...]."""
    first, reach = _first_tap(scale), values.shape[1] - 5 * scale + 1
    return _weighted(lambda tap: values[:, first + tap : first + tap + reach : scale], scale)


def _pass_columns(values: Tensor, scale: int, channels: int) -> Tensor:
    """The same of the columns of [N, H, (scale*w + 4*scale) * C], at every pixel: [N, H, (scale*w - scale + 1) * C]."""
    first, reach = _first_tap(scale), values.shape[2] // channels - 5 * scale + 1
    return _weighted(lambda tap: values[..., channels * (first + tap) : channels * (first + tap + reach)], scale)


def _first_tap(scale: int) -> int:
    return scale // 2 if scale % 2 == 0 else 2


def _weighted(values: Callable[[int], Tensor], scale: int) -> Tensor:
    """The sum of the stencil's weights times what is under its taps."""
    half, _ = STENCILS[scale]
    taps = 4 * scale if scale % 2 == 0 else 4 * scale - 1
    total = torch.zeros_like(values(0))
    for index, weight in enumerate(half):
        mirrored = taps - 1 - index
        total.add_(values(index) if mirrored == index else values(index) + values(mirrored), alpha=weight)
    return total


def _round(total: Tensor, scale: int, passes: int = 1) -> Tensor:
    """Divide by the stencil's denominator and round half up, as whole grey levels centred on 128, clipped."""
    _, denominator = STENCILS[scale]
    return (total / float(denominator**passes) + 0.5).floor().clamp(-128, 127)


def check_crops(op: str, crops: Tensor, scale: int, rounding: str, transposed: Tensor | None) -> None:
    """Refuse what no downsampling can take, with a ValueError."""
    if scale not in STENCILS:
        raise ValueError(f"{op}: the scale is one of {', '.join(map(str, STENCILS))}, got {scale}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"{op}: the rounding is one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if crops.dtype != torch.uint8 or crops.ndim != 4:
        raise ValueError(f"{op}: expected uint8 [N, H, W, C], got {crops.dtype} {tuple(crops.shape)}")
    for size in crops.shape[1:3]:
        if size % scale or size < 5 * scale:
            raise ValueError(
                f"{op}: a crop with its margin has scale * (n + 4) pixels a side (scale {scale}, n >= 1), "
                f"got {tuple(crops.shape)}"
            )
    if transposed is not None and crops.shape[1] != crops.shape[2]:
        raise ValueError(f"{op}: transposed samples need square crops, got {tuple(crops.shape)}")
