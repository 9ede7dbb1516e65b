"""Resizing against MATLAB's own files, against its definition in float64, and windows against whole images."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from eco_fast_kernels import ROUNDINGS, Rounding, downsample, margin_of
from hypothesis import given
from hypothesis import strategies as st

from eco_fast.config import Config, Data, Objective, Scale, Train
from eco_fast.data.images import Pixels, read_image
from eco_fast.data.loader import cut_crop
from eco_fast.data.resize import downsample_image, modcrop, to_tensor
from eco_fast.evaluation.metrics import luma, psnr
from tests.data.matlab_sets import imresize, matlab_files, rounding_of
from tests.helpers import oriented, plain_loader, upsample_image

SCALES: tuple[Scale, ...] = (2, 3, 4, 8)


def definition(image: Pixels, spacing: float, rounding: str) -> Pixels:
    """MATLAB's imresize written from its definition: `spacing` is the distance of output pixels in input pixels.

    The continuous Keys kernel is stretched by the spacing where that is above 1. In float64 the weights of x2, x4 and
    x8 are exact, and at x3 every value lies at least 1 / (2 * 81**2) from a rounding tie: plain floor(x + 0.5) is safe.
    """
    values = image.astype(np.float64)
    stretch = max(spacing, 1.0)
    for axis in (0, 1):
        size = values.shape[axis]
        count = round(size / spacing) if spacing < 1 else math.ceil(size / spacing)
        centre = np.arange(1, count + 1) * spacing + 0.5 * (1 - spacing)  # positions count from 1
        leftmost = np.floor(centre - 2 * stretch)
        positions = leftmost[:, None] + np.arange(math.ceil(4 * stretch) + 2)
        distance = np.abs(centre[:, None] - positions) / stretch
        near = 1.5 * distance**3 - 2.5 * distance**2 + 1
        far = -0.5 * distance**3 + 2.5 * distance**2 - 4 * distance + 2
        weights = np.select([distance <= 1, distance <= 2], [near, far], 0.0)
        weights /= weights.sum(axis=1, keepdims=True)
        there_and_back = np.concatenate([np.arange(size), np.arange(size)[::-1]])
        sources = there_and_back[(positions.astype(np.int64) - 1) % (2 * size)]
        gathered = np.moveaxis(values, axis, 0)[sources]
        values = np.moveaxis(np.einsum("kt,ktij->kij", weights, gathered), 0, axis)
        if rounding == "uint8" or axis == 1:
            values = np.clip(np.floor(values + 0.5), 0, 255)
    return values.astype(np.uint8)


def random_image(height: int, width: int, seed: int) -> Pixels:
    """Noise of all grey levels, or of black and white alone, which overshoots both ends."""
    generator = np.random.default_rng(seed)
    shape = (height, width, 3)
    image = generator.integers(0, 256, shape) if seed % 2 else generator.integers(0, 2, shape) * 255
    return image.astype(np.uint8)


def downsample_one(window: Pixels, scale: int, rounding: Rounding) -> Pixels:
    pixels: Pixels = downsample(torch.from_numpy(np.ascontiguousarray(window))[None], scale, rounding)[0].numpy()
    return pixels


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_equals_matlab_on_8_bit_images(matlab_set: Path, scale: int) -> None:
    for hr, lr in matlab_files(matlab_set, scale):
        made = downsample_image(modcrop(read_image(hr), scale), scale)
        np.testing.assert_array_equal(made, read_image(lr), err_msg=hr.name)


@pytest.mark.parametrize("matlab_set", ["in repository", "Set5"], indirect=True)
def test_equals_matlab_after_im2double(matlab_set: Path) -> None:
    for hr, lr in matlab_files(matlab_set, 8):
        made = downsample_image(modcrop(read_image(hr), 8), 8, "im2double")
        np.testing.assert_array_equal(made, read_image(lr), err_msg=hr.name)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_formula_behind_the_files_in_the_repository_gives_matlabs_own(matlab_set: Path, scale: int) -> None:
    if scale == 8 and matlab_set.name == "Set14":
        pytest.skip("its x8 images were not made by either convention")
    for hr, lr in matlab_files(matlab_set, scale):
        made = imresize(modcrop(read_image(hr), scale), scale, rounding_of(scale))
        np.testing.assert_array_equal(made, read_image(lr), err_msg=hr.name)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", SCALES)
def test_photo_equals_the_definition(photo: Pixels, scale: int, rounding: Rounding) -> None:
    np.testing.assert_array_equal(downsample_image(photo, scale, rounding), definition(photo, scale, rounding))


@given(
    scale=st.sampled_from(SCALES),
    rounding=st.sampled_from(ROUNDINGS),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    seed=st.integers(0, 2**32),
)
def test_any_size_equals_the_definition(scale: int, rounding: Rounding, height: int, width: int, seed: int) -> None:
    image = random_image(height, width, seed)
    made = downsample_image(image, scale, rounding)
    assert made.shape == (-(-height // scale), -(-width // scale), 3)
    np.testing.assert_array_equal(made, definition(image, scale, rounding))


@given(data=st.data(), scale=st.sampled_from(SCALES), rounding=st.sampled_from(ROUNDINGS), seed=st.integers(0, 2**32))
def test_window_equals_crop_of_whole_image(data: st.DataObject, scale: int, rounding: Rounding, seed: int) -> None:
    height, width = (data.draw(st.integers(scale, 9 * scale), label=side) for side in ("height", "width"))
    rows, columns = height // scale, width // scale
    patch = data.draw(st.integers(1, min(rows, columns)), label="patch")
    top = data.draw(st.integers(0, rows - patch), label="top")
    left = data.draw(st.integers(0, columns - patch), label="left")
    image = random_image(height, width, seed)

    margin = margin_of(scale)
    window = cut_crop(image, scale * top, scale * left, scale * patch, margin, scale)
    assert window.shape == (scale * patch + 2 * margin, scale * patch + 2 * margin, 3)
    whole = definition(modcrop(image, scale), scale, rounding)
    expected = whole[top : top + patch, left : left + patch]
    np.testing.assert_array_equal(downsample_one(window, scale, rounding), expected)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", SCALES)
def test_windows_at_every_edge_and_corner(photo: Pixels, scale: int, rounding: Rounding) -> None:
    image = photo[: 10 * scale + 1, : 12 * scale - 1]  # both sides lose pixels to the modcrop
    whole = downsample_image(modcrop(image, scale), scale, rounding)
    patch = 4
    for top in (0, 3, whole.shape[0] - patch):
        for left in (0, 3, whole.shape[1] - patch):
            window = cut_crop(image, scale * top, scale * left, scale * patch, margin_of(scale), scale)
            expected = whole[top : top + patch, left : left + patch]
            np.testing.assert_array_equal(downsample_one(window, scale, rounding), expected)


def test_window_inside_the_image_is_not_copied(photo: Pixels) -> None:
    assert np.shares_memory(cut_crop(photo, 40, 60, 48, 4, 2), photo)


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", SCALES)
def test_all_orientations_equal_the_crop_of_the_whole_image(photo: Pixels, scale: Scale, rounding: Rounding) -> None:
    patch = 6
    image = photo[: 9 * scale + 1, : 11 * scale]
    whole = downsample_image(modcrop(image, scale), scale, rounding)
    config = Config(
        scale=scale, data=Data(patch=patch), objective=Objective(name="vanilla"), train=Train(batch_size=64, steps=1)
    )
    loader = plain_loader(config, [image], None)
    plan, batch = loader.planner.plan(0).crops, loader.batch_at(0)
    assert batch.samples.hr is not None
    made = downsample(batch.samples.hr, scale, rounding, batch.samples.transposed).numpy()

    orientations = set()
    for index in range(64):
        top, left = plan.top[index] // scale, plan.left[index] // scale
        turns = {name: getattr(plan, name)[index] for name in ("flip_rows", "flip_columns", "transpose")}
        expected = oriented(whole[top : top + patch, left : left + patch], **turns)
        np.testing.assert_array_equal(made[index], expected)
        orientations.add(tuple(turns.values()))
    assert len(orientations) == 8

    unaware = downsample(batch.samples.hr, scale, rounding).numpy()
    differs = (unaware != made).any(axis=(1, 2, 3))
    assert not differs[~plan.transpose].any()
    if rounding == "uint8":  # rounding between the passes makes their order matter
        assert differs[plan.transpose].all()
    else:
        assert not differs.any()


def test_transposed_needs_square_windows() -> None:
    windows = torch.zeros(1, 12, 14, 3, dtype=torch.uint8)
    downsample(windows, 2)
    with pytest.raises(ValueError, match="square"):
        downsample(windows, 2, transposed=torch.tensor([True]))


def test_downsample_leaves_its_input_alone(photo: Pixels) -> None:
    windows = torch.from_numpy(photo[None, :32, :32].copy())
    before = windows.clone()
    result = downsample(windows, 2, transposed=torch.tensor([True]))
    assert torch.equal(windows, before)
    assert result.is_contiguous()
    assert result.dtype == torch.uint8
    assert result.shape == (1, 12, 12, 3)


@pytest.mark.parametrize(
    ("shape", "dtype", "scale", "rounding", "message"),
    [
        ((1, 40, 40, 3), torch.uint8, 5, "uint8", "scale is one of 2, 3, 4, 8, got 5"),
        ((1, 40, 40, 3), torch.uint8, 2, "float", "rounding is one of uint8, im2double, got 'float'"),
        ((1, 40, 40, 3), torch.float32, 2, "uint8", "expected uint8"),
        ((40, 40, 3), torch.uint8, 2, "uint8", "expected uint8"),
        ((1, 41, 40, 3), torch.uint8, 2, "uint8", "41, 40"),
        ((1, 40, 38, 3), torch.uint8, 4, "uint8", "40, 38"),
        ((1, 8, 40, 3), torch.uint8, 2, "uint8", "n >= 1"),
    ],
)
def test_downsample_refuses(
    shape: tuple[int, ...], dtype: torch.dtype, scale: int, rounding: Rounding, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        downsample(torch.zeros(shape, dtype=dtype), scale, rounding)


def test_modcrop_keeps_the_top_left(photo: Pixels) -> None:
    np.testing.assert_array_equal(modcrop(photo, 8), photo[:296, :448])
    with pytest.raises(ValueError, match="smaller than the scale 4"):
        modcrop(photo[:3], 4)


@pytest.mark.parametrize(("scale", "expected"), [(2, 33.673), (3, 30.403), (4, 28.429)])
def test_bicubic_baseline_of_set5(shared_data: Path, scale: int, expected: float) -> None:
    scores = []
    for path, lr in matlab_files(shared_data / "benchmark" / "Set5", scale):
        hr, sr = modcrop(read_image(path), scale), upsample_image(read_image(lr), scale)
        inside = (slice(scale, -scale), slice(scale, -scale))
        scores.append(psnr(*(luma(to_tensor(image[inside])) for image in (sr, hr))).item())
    assert len(scores) == 5
    assert round(float(np.mean(scores)), 3) == expected


@given(
    scale=st.sampled_from(SCALES),
    rounding=st.sampled_from(ROUNDINGS),
    height=st.integers(1, 10),
    width=st.integers(1, 10),
    seed=st.integers(0, 2**32),
)
def test_upsampling_equals_the_definition(scale: int, rounding: Rounding, height: int, width: int, seed: int) -> None:
    image = random_image(height, width, seed)
    made = upsample_image(image, scale, rounding)
    assert made.shape == (scale * height, scale * width, 3)
    np.testing.assert_array_equal(made, definition(image, 1 / scale, rounding))


@pytest.mark.parametrize("scale", [1, *SCALES])
def test_a_constant_stays_a_constant(scale: int) -> None:
    for value in (0, 1, 127, 254, 255):
        image = np.full((5, 7, 3), value, np.uint8)
        np.testing.assert_array_equal(upsample_image(image, scale), np.full((5 * scale, 7 * scale, 3), value))
        if scale > 1:
            np.testing.assert_array_equal(np.unique(downsample_image(image, scale)), [value])


def test_upsampling_by_one_changes_nothing(photo: Pixels) -> None:
    np.testing.assert_array_equal(upsample_image(photo, 1), photo)
