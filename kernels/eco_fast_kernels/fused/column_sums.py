"""Column sums of gradients, in Triton: how rows are shared out, and the parts added up in a fixed order.

    partial    float32 [sums, parts, C]        ->        [C] for each sum, rounded once to a dtype of its own

A gradient that is summed over all pixels (a bias's, a LayerNorm weight's) begins in the pass that makes the pixels'
gradient: each of its programs adds up `ROWS` rows, tile by tile, and stores one part. No atomics. Parts are read 16
bytes a thread where 4 divides C. Written and read once for `ROWS` rows, they are about 1 % of what such a pass moves.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

ROWS = 128  # whose sums are one part
MOST_ROWS = 64  # of a tile: each has an address, and they are in registers
BLOCK_PARTS, BLOCK_COLUMNS = 256, 16


def tile_of(columns: int, values: int, most_columns: int) -> tuple[int, int]:
    """Rows and columns of a tile of at most so many values; columns are padded to a power of two."""
    padded = min(triton.next_power_of_2(columns), most_columns)
    return min(values // padded, MOST_ROWS), padded


def tiles_of(tile_rows: int) -> int:
    """Tiles of so many rows that make one part."""
    return ROWS // tile_rows


def parts_of_rows(rows: int) -> int:
    """Programs that share the rows."""
    return -(-rows // ROWS)


@triton.jit
def column_sums_kernel(
    partial,
    first,
    second,  # or None, and so is the third
    third,
    parts,
    C: tl.constexpr,
    PARTS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_sum = tl.program_id(1)
    i_column = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = i_column < C
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for start in range(0, parts, PARTS):
        i_part = start + tl.arange(0, PARTS)
        mask = (i_part < parts)[:, None] & m_column[None, :]
        total += tl.load(partial + (i_sum * parts + i_part)[:, None] * C + i_column[None, :], mask=mask, other=0.0)
    sums = tl.sum(total.to(tl.float64), axis=0).to(tl.float32)
    tl.store(first + i_column, sums.to(first.dtype.element_ty), mask=m_column & (i_sum == 0))
    if second is not None:
        tl.store(second + i_column, sums.to(second.dtype.element_ty), mask=m_column & (i_sum == 1))
    if third is not None:
        tl.store(third + i_column, sums.to(third.dtype.element_ty), mask=m_column & (i_sum == 2))


def add_parts(partial: Tensor, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
    """The sums over the parts, [C] each, in a dtype of their own: at most three."""
    count, parts, columns = partial.shape
    sums = [partial.new_empty(columns, dtype=dtype) for dtype in dtypes]
    wrap_triton(column_sums_kernel)[triton.cdiv(columns, BLOCK_COLUMNS), count](
        partial, *sums, *[None] * (3 - count), parts, C=columns, PARTS=BLOCK_PARTS, COLUMNS=BLOCK_COLUMNS
    )
    return sums
