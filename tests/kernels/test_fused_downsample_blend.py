"""The downsampling and blending kernel against its plain-torch definition and MATLAB's files, to the bit."""

from typing import Any

import numpy as np
import pytest
import torch
from eco_fast_kernels import downsampling, empty_crops, margin_of, move_crops, reference
from eco_fast_kernels.crops import are_crops
from eco_fast_kernels.downsampling import ROUNDINGS, STENCILS, Rounding
from eco_fast_kernels.fused import downsample_blend as fused
from torch import Tensor

from eco_fast.data.images import read_image
from eco_fast.data.loader import cut_crop
from tests.data.matlab_sets import IN_REPOSITORY, matlab_files, rounding_of

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("poisoned_memory")]

EVERY_SCALE = pytest.mark.parametrize("scale", sorted(STENCILS))
EVERY_ROUNDING = pytest.mark.parametrize("rounding", ROUNDINGS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
# Weights of eight bits: products with whole grey levels are exact, so that a fused multiply-add changes nothing.
THIRD = torch.tensor(77 / 256)
EACH = torch.tensor([77 / 256, 1.0, 0.0])


def random_crops(samples: int, height: int, width: int, scale: int) -> Tensor:
    """Crops of an LR size: extremes that overshoot 0..255, and every second one noise."""
    shape = (samples, scale * (height + 4), scale * (width + 4), 3)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8)
    crops[::2] = 255 * torch.randint(0, 2, crops[::2].shape, dtype=torch.uint8)
    return crops


def launch(
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    scale: int,
    rounding: Rounding = "uint8",
    *,
    device: str,
    transposed: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The kernel on the device; crops stay as they lie."""
    assert all(image is None or are_crops(image) for image in (hr, sr))
    hr, sr = (None if image is None else move_crops(image, device) for image in (hr, sr))
    flags = None if transposed is None else transposed.to(device)
    return fused.launch(hr, sr, alpha.to(device), scale, rounding, flags, dtype).cpu()


def as_stored(values: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """What a kernel's store makes of float32 values: Triton's interpreter cuts them off where bfloat16 ends."""
    if device == "cpu" and dtype == torch.bfloat16:
        values = (values.view(torch.int32) & -(2**16)).view(torch.float32)
    return values.to(dtype)


# --- D alone ---


@EVERY_SCALE
@EVERY_ROUNDING
@pytest.mark.parametrize("size", [(2, 1, 1), (1, 2, 5), (1, 3, 2)], ids=str)
def test_d_is_the_references_to_the_byte(
    device: str, scale: int, rounding: Rounding, size: tuple[int, int, int]
) -> None:
    crops = random_crops(*size, scale)
    made = launch(crops, None, THIRD, scale, rounding, device=device, dtype=torch.uint8)
    assert made.dtype == torch.uint8
    assert made.is_contiguous()
    assert torch.equal(made, downsampling.downsample(crops, scale, rounding))


@EVERY_SCALE
@EVERY_ROUNDING
def test_rows_of_several_programs(device: str, scale: int, rounding: Rounding) -> None:
    crops = random_crops(1, 1, fused.PIXELS + 2, scale)
    made = launch(crops, None, THIRD, scale, rounding, device=device, dtype=torch.uint8)
    assert torch.equal(made, downsampling.downsample(crops, scale, rounding))


@pytest.mark.parametrize("width", [47, 48, 49, 96, 97])
def test_rows_that_end_near_a_programs_end(device: str, width: int) -> None:
    crops = random_crops(1, 1, width, 2)
    made = launch(crops, None, THIRD, 2, device=device, dtype=torch.uint8)
    assert torch.equal(made, downsampling.downsample(crops, 2))


@EVERY_SCALE
@EVERY_ROUNDING
@pytest.mark.parametrize("value", [1, 255])
def test_a_flat_crop_stays_flat(device: str, scale: int, rounding: Rounding, value: int) -> None:
    crops = torch.full((1, 5 * scale, 5 * scale, 3), value, dtype=torch.uint8)
    made = launch(crops, None, THIRD, scale, rounding, device=device, dtype=torch.uint8)
    assert made.tolist() == [[[[value] * 3]]]


@EVERY_SCALE
@EVERY_ROUNDING
def test_transposed_samples(device: str, scale: int, rounding: Rounding) -> None:
    size = {2: 3, 3: 3, 4: 2, 8: 1}[scale]  # columns first takes the interpreter 16 * scale**2 gathers an output row
    upright = random_crops(2, size, size, scale)
    flags = torch.tensor([False, True])
    crops = torch.where(flags.view(2, 1, 1, 1), upright.transpose(1, 2), upright).contiguous()
    made = launch(crops, None, THIRD, scale, rounding, device=device, transposed=flags, dtype=torch.uint8)
    assert torch.equal(made, downsampling.downsample(crops, scale, rounding, flags))
    turned_back = torch.where(flags.view(2, 1, 1, 1), made.transpose(1, 2), made)
    assert torch.equal(turned_back, downsampling.downsample(upright, scale, rounding))
    # The flag matters where MATLAB rounds between the passes, and only there; rarely in a few pixels of large scales.
    if scale < 4 or rounding == "im2double":
        unaware = launch(crops, None, THIRD, scale, rounding, device=device, dtype=torch.uint8)
        assert torch.equal(unaware, made) == (rounding == "im2double")


def test_flags_and_weights_may_be_views(device: str) -> None:
    crops = random_crops(3, 1, 1, 2)
    flags, alpha = torch.tensor([True, False, False, True, True, False]), torch.rand(3, 2)
    expected = reference.downsample_blend(crops, crops.flip(0), alpha[:, 1], 2, transposed=flags[::2])
    made = fused.launch(
        crops.to(device), crops.flip(0).to(device), alpha.to(device)[:, 1], 2, "uint8", flags.to(device)[::2],
        torch.float32,
    )  # fmt: skip
    torch.testing.assert_close(made.cpu(), expected, rtol=0, atol=2**-23)
    one = fused.launch(
        crops.to(device), None, THIRD.to(device), 2, "uint8", torch.tensor(True, device=device).expand(3), torch.uint8
    )
    assert torch.equal(one.cpu(), downsampling.downsample(crops, 2, "uint8", torch.tensor([True] * 3)))


# --- the blend ---


@EVERY_SCALE
@EVERY_ROUNDING
def test_blend_is_the_references_to_the_bit(device: str, scale: int, rounding: Rounding) -> None:
    hr, sr = random_crops(3, 2, 2, scale), random_crops(3, 2, 2, scale)
    flags = torch.tensor([True, False, False]) if scale < 4 else None
    made = launch(hr, sr, EACH, scale, rounding, device=device, transposed=flags)
    expected = reference.downsample_blend(hr, sr, EACH, scale, rounding, transposed=flags)
    assert torch.equal(made, expected)


@EVERY_DTYPE
@pytest.mark.parametrize("alpha", [THIRD, EACH], ids=["scalar", "per sample"])
@pytest.mark.parametrize("images", ["both", "hr", "sr"])
@pytest.mark.parametrize("width", [3, 50])
def test_dtypes_and_absent_images(device: str, dtype: torch.dtype, alpha: Tensor, images: str, width: int) -> None:
    hr, sr = random_crops(3, 1, width, 2), random_crops(3, 1, width, 2)
    pair = (None if images == "sr" else hr, None if images == "hr" else sr)
    made = launch(*pair, alpha, 2, device=device, dtype=dtype)
    assert made.dtype == dtype
    assert made.shape == (3, 3, 1, width)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made, as_stored(reference.downsample_blend(*pair, alpha, 2), dtype, device))


@EVERY_DTYPE
def test_strides_are_channels_last(device: str, dtype: torch.dtype) -> None:
    made = launch(random_crops(2, 2, 3, 2), None, THIRD, 2, device=device, dtype=dtype)
    assert made.stride() == (2 * 3 * 3, 1, 3 * 3, 3)


@pytest.mark.parametrize("alpha", [torch.tensor(0.3), torch.tensor([0.1, 0.6, 0.9])], ids=["scalar", "per sample"])
def test_blend_of_any_weight_is_as_near_to_float64_as_the_reference(device: str, alpha: Tensor) -> None:
    hr, sr = random_crops(3, 2, 4, 2), random_crops(3, 2, 4, 2)
    of_hr, of_sr = (downsampling.downsample(image, 2).double().movedim(3, 1) for image in (hr, sr))
    exact = (of_sr + alpha.double().reshape(-1, 1, 1, 1) * (of_hr - of_sr)) / 255
    plain = reference.downsample_blend(hr, sr, alpha, 2)
    made = launch(hr, sr, alpha, 2, device=device)
    assert (made.double() - exact).abs().max() <= 2 * (plain.double() - exact).abs().max()


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32], ids=str)
@pytest.mark.parametrize("width", [3, 48, 50])
def test_nothing_is_written_beyond_the_result(
    device: str, dtype: torch.dtype, width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    crops = random_crops(1, 1, width, 2)
    memory = torch.full((3 * width + 2048,), 77, dtype=dtype, device=device)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty", lambda shape, **_: memory[1024:-1024].view(shape))
        launch(crops, None, THIRD, 2, device=device, dtype=dtype)
    assert (memory[:1024] == 77).all()
    assert (memory[-1024:] == 77).all()
    assert not (memory[1024:-1024] == 77).all()


def test_same_input_same_bits(device: str) -> None:
    hr, sr, alpha = random_crops(2, 2, 2, 3), random_crops(2, 2, 2, 3), torch.rand(2)
    first, second = (launch(hr, sr, alpha, 3, "im2double", device=device) for _ in range(2))
    assert torch.equal(first, second)


# --- how crops may lie ---


def laid_out(crops: Tensor, layout: str, scale: int) -> Tensor:
    """The same pixels, elsewhere."""
    samples, side, _, _ = crops.shape
    if layout == "padded":  # as the loader makes them
        place = empty_crops(samples, side, margin_of(scale))
    elif layout == "slice":  # of a larger batch, whose size is no multiple of 16 bytes
        place = torch.empty((samples + 2, *crops.shape[1:]), dtype=torch.uint8)[1:-1]
    elif layout == "numpy":  # memory that begins anywhere
        place = torch.from_numpy(np.empty(crops.numel() + 1, dtype=np.uint8)[1:]).view_as(crops)
    elif layout in (
        "wide",
        "wide, to the end",
    ):  # rows further apart than needed, with or without bytes behind the last
        pitch = 64 * scale
        used = samples * side * pitch - (0 if layout == "wide" else pitch - 3 * side)
        place = torch.empty(used, dtype=torch.uint8)
        place = place.as_strided(crops.shape, (side * pitch, pitch, 3, 1))
    else:
        place = torch.empty_like(crops)
    return place.copy_(crops)


LAYOUTS = ("padded", "contiguous", "slice", "columns", "numpy", "wide", "wide, to the end")
PAIRS = (
    ("padded", "padded"),
    ("padded", "contiguous"),
    ("contiguous", "padded"),
    ("slice", "slice"),
    ("slice", "contiguous"),
    ("slice", "numpy"),
    ("numpy", "numpy"),
    ("wide", "wide"),
    ("wide", "wide, to the end"),
    ("wide, to the end", "wide"),
)


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_give_the_same_bytes(device: str, scale: int, layout: str) -> None:
    crops = random_crops(3, 1, 1, scale)
    made = launch(laid_out(crops, layout, scale), None, THIRD, scale, device=device, dtype=torch.uint8)
    assert torch.equal(made, downsampling.downsample(crops, scale))


@pytest.mark.parametrize("layouts", PAIRS, ids=" and ".join)
def test_pairs_of_layouts_give_the_same_bits(
    device: str, layouts: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hr, sr = random_crops(3, 1, 1, 3), random_crops(3, 1, 1, 3)
    pair = [laid_out(image, layout, 3) for image, layout in zip((hr, sr), layouts, strict=True)]
    made = launch(pair[0], pair[1], EACH, 3, device=device)
    assert torch.equal(made, reference.downsample_blend(hr, sr, EACH, 3))

    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(fused, "downsample_blend_kernel", {(3, 1): lambda *given, **_: seen.append(given)})
    launch(pair[0], pair[1], EACH, 3, device=device)
    for image in seen[0][:2]:
        pitch, in_width = seen[0][6], seen[0][8]
        last_row = image.storage_offset() + (3 * 15 - 1) * pitch
        assert last_row + in_width <= image.untyped_storage().nbytes()


@EVERY_SCALE
def test_the_kernels_weights_are_the_stencils(scale: int) -> None:
    half, denominator = STENCILS[scale]
    taps = 2 * len(half) - scale % 2
    weights = [fused._weight.fn(abs(2 * tap + 1 - taps), scale, denominator) for tap in range(taps)]
    assert weights == [*half, *half[::-1][scale % 2 :]]


def test_aligned_crops_are_read_where_they_lie(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hr, sr = (move_crops(laid_out(random_crops(2, 1, 1, 3), "padded", 3), device) for _ in range(2))
    seen: list[tuple[Any, ...]] = []
    monkeypatch.setattr(fused, "downsample_blend_kernel", {(2, 1): lambda *given, **_: seen.append(given)})
    fused.launch(hr, sr, THIRD.to(device), 3, "uint8", None, torch.float32)
    (first, second, *_, lead, in_width, _, _, _) = seen[0]
    assert (first.data_ptr(), second.data_ptr()) == (hr.data_ptr() - 14, sr.data_ptr() - 14)
    assert lead == 14
    assert in_width == 14 + 45 + 5  # whole multiples of 16 bytes


# --- MATLAB's own files ---


@EVERY_SCALE
@pytest.mark.parametrize("where", ["interior", "first corner", "last corner"])
def test_regions_of_real_images_equal_matlabs_files(device: str, scale: int, where: str) -> None:
    rounding = rounding_of(scale)
    hr, lr = matlab_files(IN_REPOSITORY, scale)[0]
    image, matlab = read_image(hr), torch.from_numpy(read_image(lr))
    patch = 3
    last = tuple(size - patch for size in matlab.shape[:2])
    top, left = {"interior": (last[0] // 2, last[1] // 3), "first corner": (0, 0), "last corner": last}[where]
    cut = cut_crop(image, scale * top, scale * left, scale * patch, margin_of(scale), scale)
    crop = torch.from_numpy(np.ascontiguousarray(cut))
    crops, flags = torch.stack([crop, crop.transpose(0, 1)]), torch.tensor([False, True])
    made = launch(crops, None, THIRD, scale, rounding, device=device, transposed=flags, dtype=torch.uint8)
    expected = matlab[top : top + patch, left : left + patch]
    assert torch.equal(made[0], expected)
    assert torch.equal(made[1], expected.transpose(0, 1))
