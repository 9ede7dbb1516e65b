"""The cutting kernel and its definition against numpy's symmetric padding and the plain loader's crops."""

from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch
from eco_fast_kernels import (
    crop_side,
    cut_crops,
    empty_crops,
    margin_of,
    reference,
)
from eco_fast_kernels.downsampling import STENCILS
from eco_fast_kernels.fused import blended_loss
from eco_fast_kernels.fused import cut_crops as fused
from eco_fast_kernels.fused import downsample_blend as blend
from torch import Tensor

from eco_fast.data import loader
from eco_fast.data.images import Pixels
from eco_fast.data.sampler import CropPlan

pytestmark = pytest.mark.usefixtures("poisoned_memory")

EVERY_SCALE = pytest.mark.parametrize("scale", sorted(STENCILS))
ORIENTATIONS = tuple(range(8))


def random_image(height: int, width: int) -> Pixels:
    return np.random.default_rng(height + width).integers(0, 256, (height, width, 3), dtype=np.uint8)


def rows_of(image: Pixels, where: Sequence[tuple[int, int]], scale: int, *, offset: int = 0, row_bytes: int = 0) -> Any:
    """The plan's rows of crops that begin at (top, left), margin included, in all orientations."""
    height, width = (size // scale * scale for size in image.shape[:2])
    return [
        (offset, row_bytes or image.shape[1] * 3, height, width, top, left, orientation)
        for top, left in where
        for orientation in ORIENTATIONS
    ]


def padded_by_numpy(image: Pixels, plan: Sequence[Sequence[int]], side: int) -> Tensor:
    """The same crops, from an image that numpy has extended."""
    crops = []
    for _, _, height, width, top, left, orientation in plan:
        beyond = [(max(-start, 0), max(start + side - size, 0)) for start, size in ((top, height), (left, width))]
        extended = np.pad(image[:height, :width], [*beyond, (0, 0)], mode="symmetric")
        first_row, first_column = max(top, 0), max(left, 0)
        crop = extended[first_row : first_row + side, first_column : first_column + side]
        if orientation & 1:
            crop = crop[::-1]
        if orientation & 2:
            crop = crop[:, ::-1]
        crops.append(crop.swapaxes(0, 1) if orientation & 4 else crop)
    return torch.from_numpy(np.stack(crops))


def launch(pixels: Tensor, plan: Any, side: int, margin: int, device: str) -> Tensor:
    """The kernel on the device; checks how the crops lie."""
    made = fused.launch(pixels.to(device), torch.tensor(plan, device=device), side, margin).cpu()
    expected = empty_crops(len(plan), side, margin)
    assert (made.dtype, made.shape, made.stride()) == (torch.uint8, expected.shape, expected.stride())
    return made


def padded_rows(crops: Tensor) -> Tensor:
    """Everything that lies in the crops' memory."""
    return crops.as_strided((len(crops), crops.shape[1], crops.stride(1)), (*crops.stride()[:2], 1), 0)


def places(image: Pixels, side: int) -> list[tuple[int, int]]:
    """Inside, at each edge, one pixel over it, and a whole margin."""
    height, width = image.shape[:2]
    rows = (0, -1, 3 - side, 2, height - side, height - side + 1, height - 3)
    columns = (1, 3 - side, 0, width - side - 1, width - side, width - side + 1, width - 2)
    return list(zip(rows, columns, strict=True))


@pytest.mark.parametrize(("scale", "patch"), [(2, 5), (3, 3), (4, 2), (8, 1)])
def test_crops_of_every_edge_and_orientation(device: str, scale: int, patch: int) -> None:
    side, margin = crop_side(scale, patch), margin_of(scale)
    image = random_image(side + 2 * scale - 1, side + scale + 1)
    plan = rows_of(image, places(image, side), scale)
    expected = padded_by_numpy(image, plan, side)
    pixels = torch.from_numpy(image).flatten()
    made = launch(pixels, plan, side, margin, device)
    assert torch.equal(made, expected)
    by_definition = reference.cut_crops(pixels, torch.tensor(plan), side, margin)
    assert torch.equal(by_definition, expected)
    for crops in (made, by_definition):
        unused = padded_rows(crops).clone()
        lead = crops.storage_offset()
        unused[..., lead : lead + 3 * side] = 0
        assert not unused.any()


@pytest.mark.parametrize("size", [(1, 1), (2, 7), (5, 3), (12, 200)], ids=str)
def test_small_images_are_reflected_again_and_again(device: str, size: tuple[int, int]) -> None:
    image = random_image(*size)
    plan = rows_of(image, [(-40, -17), (0, 0), (-3, 1)], 1)[::3]  # every orientation once
    expected = padded_by_numpy(image, plan, 50)
    pixels = torch.from_numpy(image).flatten()
    assert torch.equal(launch(pixels, plan, 50, 6, device), expected)
    assert torch.equal(cut_crops(pixels, torch.tensor(plan), 50, 6), expected)


@pytest.mark.parametrize(("side", "margin"), [(1, 0), (21, 0), (22, 4), (32, 6), (33, 8), (65, 16)])
def test_sizes_around_those_of_a_program(device: str, side: int, margin: int) -> None:
    image = random_image(40, 50)
    plan = rows_of(image, [(-2, 3)], 1)
    made = launch(torch.from_numpy(image).flatten(), plan, side, margin, device)
    assert torch.equal(made, padded_by_numpy(image, plan, side))


def test_one_crop_of_one_of_several_images(device: str) -> None:
    """Images lie anywhere, one with rows further apart than its own."""
    first, second = random_image(30, 31), random_image(25, 40)
    wide = np.full((25, 127), 9, np.uint8)
    wide[:, :120] = second.reshape(25, 120)
    pixels = torch.from_numpy(np.concatenate([np.zeros(5, np.uint8), first.reshape(-1), wide.reshape(-1)]))
    offset = 5 + first.size
    for row in (rows_of(first, [(2, 1)], 1, offset=5), rows_of(second, [(8, -3)], 1, offset=offset, row_bytes=127)):
        image = first if row[0][0] == 5 else second
        for one in row:
            assert torch.equal(launch(pixels, [one], 20, 4, device), padded_by_numpy(image, [one], 20))
    a_slice = pixels[5:]
    plan = torch.tensor(rows_of(first, [(2, 1)], 1))
    assert torch.equal(cut_crops(a_slice, plan, 20, 4), padded_by_numpy(first, plan.tolist(), 20))


def test_addresses_are_whole_numbers_of_64_bits(device: str) -> None:
    """Of an image behind 2**31 bytes, and of one whose rows reach that far."""
    image, far_apart = random_image(12, 14), 2**28
    pixels = torch.from_numpy(np.empty(11 * far_apart + 1000, np.uint8)).to(device)  # most of it is never touched
    for offset, row_bytes in ((2**31 + 77, 14 * 3), (7, far_apart)):
        pixels[offset:].as_strided(image.shape, (row_bytes, 3, 1)).copy_(torch.from_numpy(image))
        plan = rows_of(image, [(1, -2)], 1, offset=offset, row_bytes=row_bytes)
        assert torch.equal(launch(pixels, plan, 12, 2, device), padded_by_numpy(image, plan, 12))


class OneImage:
    """A source of one image."""

    def __init__(self, image: Pixels) -> None:
        self.image = image

    def read(self, _: int) -> Pixels:
        return self.image


def loaders_crops(image: Pixels, plan: Any, scale: int, patch: int) -> Tensor:
    """What the plain loader cuts."""
    _, _, _, _, top, left, orientation = np.array(plan).T
    crops = empty_crops(len(plan), crop_side(scale, patch), margin_of(scale))
    cut = CropPlan(
        image=np.zeros_like(top),
        top=top + margin_of(scale),
        left=left + margin_of(scale),
        flip_rows=orientation & 1 > 0,
        flip_columns=orientation & 2 > 0,
        transpose=orientation & 4 > 0,
        uniform=np.zeros(len(top)),
    )
    loader.fill_crops(cast("Any", OneImage(image)), cut, scale, patch, crops.numpy())
    return crops


@EVERY_SCALE
def test_crops_are_the_plain_loaders(device: str, scale: int) -> None:
    """So are the input and the loss made of them, to the bit."""
    patch, margin = 2, margin_of(scale)
    side = crop_side(scale, patch)
    image = random_image(7 * scale + 1, 6 * scale + scale - 1)
    corners = [(-margin, -margin), (scale - margin, 0), (5 * scale - margin, 4 * scale - margin)]
    plan = rows_of(image, corners, scale)[:: 1 if scale < 4 else 5]
    made = launch(torch.from_numpy(image).flatten(), plan, side, margin, device)
    expected = loaders_crops(image, plan, scale, patch)
    assert torch.equal(padded_rows(made), padded_rows(expected))
    few = slice(0, 2)
    alpha, one = torch.tensor(0.3, device=device), torch.tensor(1.0, device=device)
    prediction = torch.rand(2, 3, scale * patch, scale * patch).to(device, memory_format=torch.channels_last)
    results = []
    for crops in (made[few].to(device), expected[few].to(device)):
        lr = blend.launch(crops, None, alpha, scale, "uint8", None, torch.float32)
        results.append((lr, *blended_loss.launch(prediction, crops, None, alpha, "l1", margin, one)))
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))
