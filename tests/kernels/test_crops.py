"""How crops lie in memory, and what a kernel may read of it."""

import pytest
import torch
from eco_fast_kernels import crop_side, downsample, empty_crops, margin_of, move_crops
from eco_fast_kernels.crops import ALIGNMENT, aligned_start, are_crops, row_bytes, with_same_layout
from eco_fast_kernels.downsampling import STENCILS
from torch import Tensor


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("scale", sorted(STENCILS))
@pytest.mark.parametrize("patch", [48, 64, 1, 7])
def test_rows_and_targets_of_crops_are_aligned(scale: int, patch: int) -> None:
    margin = margin_of(scale)
    crops = empty_crops(3, scale * patch + 2 * margin, margin)
    side = scale * patch + 2 * margin
    assert crops.shape == (3, side, side, 3)
    assert crops.dtype == torch.uint8
    assert not crops.any()
    assert are_crops(crops)
    lead = {2: 4, 3: 14, 4: 8, 8: 0}[scale]
    start, found = aligned_start(crops)
    assert found == lead == crops.storage_offset()
    assert start.data_ptr() == crops.data_ptr() - lead
    target = crops[:, margin:-margin, margin:-margin]
    for sample in range(3):
        for row in (0, 1, side - 1):
            assert (crops[sample, row].data_ptr() - lead) % ALIGNMENT == 0
        assert target[sample, 0].data_ptr() % ALIGNMENT == 0
        assert target[sample, -1].data_ptr() % ALIGNMENT == 0
    assert row_bytes(crops, lead) % ALIGNMENT == 0
    assert lead + 3 * side <= row_bytes(crops, lead) <= crops.stride(1) < lead + 3 * side + ALIGNMENT


@pytest.mark.parametrize("samples", [1, 3])
def test_writing_crops_touches_nothing_else(samples: int) -> None:
    crops = empty_crops(samples, 15, 6)
    crops.fill_(255)
    memory = crops.as_strided((samples * 15, crops.stride(1)), (crops.stride(1), 1), 0)
    assert int((memory == 255).sum()) == crops.numel()
    assert memory[:, :14].eq(0).all()


@pytest.mark.parametrize("place", ["cpu:0", "cuda", "meta"])  # the first is another device than "cpu", with its memory
@pytest.mark.parametrize("samples", [1, 3])
def test_crops_move_as_they_lie(samples: int, place: str) -> None:
    if place == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    padded = empty_crops(samples, 15, 6).copy_(random_bytes(samples, 15, 15, 3))
    batch, images = random_bytes(samples + 2, 15, 15, 3), random_bytes(samples, 15, 20, 3)
    for crops in (padded, batch, batch[1:-1], images[:, :, 2:-3], padded[-1:]):
        assert move_crops(crops, "cpu") is crops
        moved = move_crops(crops, place)
        assert moved.data_ptr() != crops.data_ptr()
        assert moved.shape == crops.shape
        assert moved.stride() == crops.stride()
        assert are_crops(moved)
        if place == "meta":
            continue
        assert torch.equal(moved.cpu(), crops)
        lead = aligned_start(crops)[1]
        assert aligned_start(moved)[1] == lead
        assert row_bytes(moved, lead) == row_bytes(crops, lead)


def test_aligned_start_stays_inside_the_memory() -> None:
    memory = torch.zeros(100, dtype=torch.uint8)
    for offset in range(20):
        crops = memory.as_strided((1, 2, 3, 3), (18, 9, 3, 1), offset)
        start, lead = aligned_start(crops)
        assert lead == crops.data_ptr() % ALIGNMENT
        assert start.data_ptr() == crops.data_ptr() - lead
        assert start.storage_offset() >= 0
    shifted = torch.frombuffer(bytearray(100), dtype=torch.uint8, offset=3)[:18].view(1, 2, 3, 3)
    start, lead = aligned_start(shifted)
    assert start.data_ptr() == shifted.data_ptr() - lead
    assert lead == 0 or start.storage_offset() >= 0


@pytest.mark.parametrize("offset", [0, 3, 16, 21])
@pytest.mark.parametrize("pitch", [9, 15, 16, 24, 32])
@pytest.mark.parametrize("behind", [0, 3, 7, 32])
def test_rows_are_not_read_beyond_the_memory(offset: int, pitch: int, behind: int) -> None:
    memory = torch.zeros(offset + 3 * pitch + 9 + behind, dtype=torch.uint8)
    crops = memory.as_strided((2, 2, 3, 3), (2 * pitch, pitch, 3, 1), offset)
    lead = crops.data_ptr() % ALIGNMENT
    readable = row_bytes(crops, lead)
    assert lead + 9 <= readable
    assert offset - lead + 3 * pitch + readable <= memory.numel()
    assert readable == lead + 9 or (readable % ALIGNMENT == 0 and readable <= pitch)


def test_images_that_lie_alike_are_left_where_they_are() -> None:
    batch = random_bytes(4, 5, 5, 3)
    first, second = batch[:2], batch.clone()[:2]
    assert all(one is other for one, other in zip(with_same_layout(first, second), (first, second), strict=True))
    for pair in ((batch[1:3], second), (empty_crops(2, 5, 1), second)):
        copies = with_same_layout(*pair)
        assert torch.equal(copies[0], pair[0])
        assert torch.equal(copies[1], pair[1])
        assert copies[0].stride() == copies[1].stride()
        assert aligned_start(copies[0])[1] == aligned_start(copies[1])[1]


@pytest.mark.parametrize("scale", STENCILS)
@pytest.mark.parametrize("patch", [1, 48])
def test_a_crop_of_the_side_is_downsampled_to_the_patch(scale: int, patch: int) -> None:
    side = crop_side(scale, patch)
    assert downsample(random_bytes(1, side, side, 3), scale).shape == (1, patch, patch, 3)
