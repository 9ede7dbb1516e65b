"""What the tests of the kernels behind convolutions share: images, and what counts as exact enough."""

import pytest
import torch
from eco_fast_kernels.epilogues import PART_PIXELS, partial_sums
from torch import Tensor

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
EVERY_DTYPE = pytest.mark.parametrize("dtype", FLOATS, ids=str)
SIZES = [(1, 1, 1, 1), (2, 60, 13, 11), (1, 64, 3, 7), (1, 256, 2, 3), (2, 8, 8, 16)]
"""[N, C, H, W]: fewer and more pixels than a part has, whole parts, and channels that are no power of two."""
EVERY_SIZE = pytest.mark.parametrize("size", SIZES, ids=str)
SIZE = SIZES[1]


def random_images(size: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Normal values, channels_last."""
    return torch.randn(size).to(dtype, memory_format=torch.channels_last)


def assert_exact_enough(
    made: Tensor, plain: Tensor, true: Tensor, device: str, roundings: int = 1, units: float = 0.5
) -> None:
    """Like plain torch's in dtype, shape and layout, and at most twice as far from float64, element by element.

    Few numbers may come out exact by chance: no error counts as less than some units of float32's last place in the
    largest value. Triton's interpreter cuts bfloat16 off instead of rounding it, and may differ by a unit for each
    rounding.
    """
    assert (made.dtype, made.shape) == (plain.dtype, plain.shape)
    assert made.ndim != 4 or made.is_contiguous(memory_format=torch.channels_last)
    cut_off = roundings * torch.finfo(made.dtype).eps if device == "cpu" and made.dtype == torch.bfloat16 else 0
    error, of_plain = ((one.cpu().double() - true).abs() for one in (made, plain))
    allowed = 2 * max(float(of_plain.max()), units * 2**-23 * float(true.abs().max()))
    assert (error <= allowed + cut_off * true.abs()).all()


def assert_partial_sums(sums: Tensor, index: int, summed: Tensor) -> None:
    """The index has a row for each part of each sample, of just these values in float32; the other places are NaN."""
    values = summed.cpu().double()
    rows, most = (partial_sums(one).flatten(0, 1) for one in (values, values.abs()))
    made = sums[index].cpu().flatten(0, -2)
    assert (made.dtype, made.shape) == (torch.float32, rows.shape)
    assert ((made.double() - rows).abs() <= PART_PIXELS * 2**-24 * most).all()
    assert sums[[place for place in range(len(sums)) if place != index]].isnan().all()
