"""Crops cut from images that lie on the device, flipped and transposed, in Triton.

    out[n, i, j, c] = image[fold(top + i'), fold(left + j'), c]    (i', j') = (i, j), transposed and flipped back

    pixels  uint8  [bytes]    images, or parts of them, with rows `row_bytes` apart
    plan    int64  [N, 7]     `crops.PlanColumn`; all but the offset below 2**30
    out     uint8  [N, side, side, 3], padded as `crops` says; unused bytes are 0

`fold` is MATLAB's symmetric extension, the edge repeated, any number of reflections.

Reference: `reference.cut_crops`.
Traffic: 1 + pitch / (3 * side) bytes per value of a crop, all compulsory, and 56 bytes of the plan per program. They
are written 16 a thread. They are read one by one, since a crop begins at any byte and may run backwards: a thread's 16
lie side by side, or, in a transposed crop, in up to 7 rows of the image, of which a program reads 96 bytes each. What
neighbouring programs share of the sectors comes from the L2 cache.

One program makes 32 rows of 64 bytes of one crop. Both axes are alike: an output pixel's address is a number that its
row gives plus one that its column gives, and a transposition swaps the two.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_fast_kernels.crops import Orientation, PlanColumn, as_crops, padded_row

BLOCK_ROWS, BLOCK_BYTES = (
    32,
    64,
)  # 16 bytes in two rows for each thread: what a column gives is worked out once for both
WARPS = 2
_PLAN_COLUMNS = tl.constexpr(len(PlanColumn))
_OFFSET, _ROW_BYTES, _HEIGHT, _WIDTH, _TOP, _LEFT, _ORIENTATION = (tl.constexpr(column.value) for column in PlanColumn)
_FLIP_ROWS, _FLIP_COLUMNS, _TRANSPOSE = (tl.constexpr(bit.value) for bit in Orientation)


@triton.jit
def _source(i_pixel, start, size, step, flipped, side):
    """Bytes from the image's start to where an axis' pixels lie: int64."""
    position = start + tl.where(flipped, side - 1 - i_pixel, i_pixel)
    if (start < 0) | (start + side > size):  # few crops are, and the division is most of the work
        position = tl.maximum(position, -1 - position) % (2 * size)
        position = tl.minimum(position, 2 * size - 1 - position)
    return position.to(tl.int64) * step


@triton.jit
def cut_crops_kernel(
    pixels,
    plan,
    out,
    side,
    lead,  # unused bytes before a row's first pixel
    pitch,  # bytes from row to row
    BLOCK_ROWS: tl.constexpr,
    BLOCK_BYTES: tl.constexpr,
):
    i_sample = tl.program_id(0).to(tl.int64)
    p_plan = plan + i_sample * _PLAN_COLUMNS
    orientation = tl.load(p_plan + _ORIENTATION)
    flip_rows, flip_columns = (orientation & _FLIP_ROWS) != 0, (orientation & _FLIP_COLUMNS) != 0
    transposed = (orientation & _TRANSPOSE) != 0
    top, left = tl.load(p_plan + _TOP).to(tl.int32), tl.load(p_plan + _LEFT).to(tl.int32)
    height, width = tl.load(p_plan + _HEIGHT).to(tl.int32), tl.load(p_plan + _WIDTH).to(tl.int32)
    row_bytes = tl.load(p_plan + _ROW_BYTES).to(tl.int32)

    i_row = tl.program_id(2) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)
    o_byte = tl.program_id(1) * BLOCK_BYTES + tl.arange(0, BLOCK_BYTES)
    o_value = o_byte - lead
    o_rows = _source(
        i_row, tl.where(transposed, left, top), tl.where(transposed, width, height),
        tl.where(transposed, 3, row_bytes), tl.where(transposed, flip_columns, flip_rows), side,
    )  # fmt: skip
    o_columns = o_value % 3 + _source(
        o_value // 3, tl.where(transposed, top, left), tl.where(transposed, height, width),
        tl.where(transposed, row_bytes, 3), tl.where(transposed, flip_rows, flip_columns), side,
    )  # fmt: skip

    m_row = (i_row < side)[:, None]
    m_value = ((o_value >= 0) & (o_value < 3 * side))[None, :]
    p_image = pixels + tl.load(p_plan + _OFFSET)
    b_out = tl.load(p_image + (o_rows[:, None] + o_columns[None, :]), mask=m_row & m_value, other=0)
    o_out = (i_sample * side + i_row)[:, None] * pitch + o_byte[None, :]
    tl.store(out + o_out, b_out, mask=m_row & (o_byte < pitch)[None, :])


def launch(pixels: Tensor, plan: Tensor, side: int, margin: int) -> Tensor:
    """Run the kernel on checked arguments."""
    lead, pitch = padded_row(side, margin)
    out = torch.empty((len(plan), side, pitch), dtype=torch.uint8, device=pixels.device)
    grid = (len(plan), triton.cdiv(pitch, BLOCK_BYTES), triton.cdiv(side, BLOCK_ROWS))
    cut_crops_kernel[grid](
        pixels, plan, out, side, lead, pitch, BLOCK_ROWS=BLOCK_ROWS, BLOCK_BYTES=BLOCK_BYTES, num_warps=WARPS
    )
    return as_crops(out, lead)
