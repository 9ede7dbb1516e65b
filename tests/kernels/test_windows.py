"""How windows lie in memory, and what a kernel may read of it."""

import pytest
import torch
from eco_fast_kernels import empty_windows, margin_of, move_windows
from eco_fast_kernels.downsampling import STENCILS
from eco_fast_kernels.windows import ALIGNMENT, aligned_start, alike, are_windows, row_bytes
from torch import Tensor


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


@pytest.mark.parametrize("scale", sorted(STENCILS))
@pytest.mark.parametrize("patch", [48, 64, 1, 7])
def test_rows_and_targets_of_windows_are_aligned(scale: int, patch: int) -> None:
    margin = margin_of(scale)
    windows = empty_windows(3, scale * patch + 2 * margin, margin)
    side = scale * patch + 2 * margin
    assert windows.shape == (3, side, side, 3)
    assert windows.dtype == torch.uint8
    assert not windows.any()
    assert are_windows(windows)
    lead = {2: 4, 3: 14, 4: 8, 8: 0}[scale]
    start, found = aligned_start(windows)
    assert found == lead == windows.storage_offset()
    assert start.data_ptr() == windows.data_ptr() - lead
    target = windows[:, margin:-margin, margin:-margin]
    for sample in range(3):
        for row in (0, 1, side - 1):
            assert (windows[sample, row].data_ptr() - lead) % ALIGNMENT == 0
        assert target[sample, 0].data_ptr() % ALIGNMENT == 0
        assert target[sample, -1].data_ptr() % ALIGNMENT == 0
    assert row_bytes(windows, lead) % ALIGNMENT == 0
    assert lead + 3 * side <= row_bytes(windows, lead) <= windows.stride(1) < lead + 3 * side + ALIGNMENT


@pytest.mark.parametrize("samples", [1, 3])
def test_writing_windows_touches_nothing_else(samples: int) -> None:
    windows = empty_windows(samples, 15, 6)
    windows.fill_(255)
    memory = windows.as_strided((samples * 15, windows.stride(1)), (windows.stride(1), 1), 0)
    assert int((memory == 255).sum()) == windows.numel()
    assert memory[:, :14].eq(0).all()


@pytest.mark.parametrize("place", ["cpu:0", "cuda", "meta"])  # the first is another device than "cpu", with its memory
@pytest.mark.parametrize("samples", [1, 3])
def test_windows_move_as_they_lie(samples: int, place: str) -> None:
    if place == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a GPU")
    padded = empty_windows(samples, 15, 6).copy_(random_bytes(samples, 15, 15, 3))
    batch, pictures = random_bytes(samples + 2, 15, 15, 3), random_bytes(samples, 15, 20, 3)
    for windows in (padded, batch, batch[1:-1], pictures[:, :, 2:-3], padded[-1:]):
        assert move_windows(windows, "cpu") is windows
        moved = move_windows(windows, place)
        assert moved.data_ptr() != windows.data_ptr()
        assert moved.shape == windows.shape
        assert moved.stride() == windows.stride()
        assert are_windows(moved)
        if place == "meta":
            continue
        assert torch.equal(moved.cpu(), windows)
        lead = aligned_start(windows)[1]
        assert aligned_start(moved)[1] == lead
        assert row_bytes(moved, lead) == row_bytes(windows, lead)


def test_aligned_start_stays_inside_the_memory() -> None:
    memory = torch.zeros(100, dtype=torch.uint8)
    for offset in range(20):
        windows = memory.as_strided((1, 2, 3, 3), (18, 9, 3, 1), offset)
        start, lead = aligned_start(windows)
        assert lead == windows.data_ptr() % ALIGNMENT
        assert start.data_ptr() == windows.data_ptr() - lead
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
    windows = memory.as_strided((2, 2, 3, 3), (2 * pitch, pitch, 3, 1), offset)
    lead = windows.data_ptr() % ALIGNMENT
    readable = row_bytes(windows, lead)
    assert lead + 9 <= readable
    assert offset - lead + 3 * pitch + readable <= memory.numel()
    assert readable == lead + 9 or (readable % ALIGNMENT == 0 and readable <= pitch)


def test_images_that_lie_alike_are_left_where_they_are() -> None:
    batch = random_bytes(4, 5, 5, 3)
    first, second = batch[:2], batch.clone()[:2]
    assert all(one is other for one, other in zip(alike(first, second), (first, second), strict=True))
    for pair in ((batch[1:3], second), (empty_windows(2, 5, 1), second)):
        copies = alike(*pair)
        assert torch.equal(copies[0], pair[0])
        assert torch.equal(copies[1], pair[1])
        assert copies[0].stride() == copies[1].stride()
        assert aligned_start(copies[0])[1] == aligned_start(copies[1])[1]
