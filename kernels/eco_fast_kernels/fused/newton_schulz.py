"""Five rounds of Newton-Schulz on any number of matrices of any shapes, in Triton: fifteen launches.

    a = x x',  b = 3.4445 + -4.7750*a + 2.0315*a a,  x = b x

for all matrices at once: a program makes one tile of one matrix, and a list says which. The products take fp16 and add
in float32. Their factors are bounded (of x, whose norm is at most 1, no singular value exceeds 1.3 in any round, and of
b none exceeds 3.5), so that fp16's range is enough on every card, and it has eleven bits where bfloat16 has eight.

A matrix lies with its smaller side as rows, row by row, both sides filled up with zeros to whole tiles: they stay
zeros, no access needs a mask, and rows begin at multiples of 16 bytes.

Source: see `muon`.  Reference: `muon.orthogonalise`.
Traffic: in each round 6 bytes per value in and 2 out where the smaller side is one tile, and the squares; beyond that
every tile reads its factors again.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl

from eco_fast_kernels.muon import ITERATIONS, QUINTIC, Matrices

TABLE_COLUMNS = tl.constexpr(10)
"""Of a matrix: where it begins in the buffers, in fours of values; how many values and columns it has; where it begins
among the tiles, in tiles; the steps to the next row and column there; its sides, in tiles; where its square begins, in
tiles; its first block."""


class Tiling(NamedTuple):
    """What one program makes."""

    side: int
    """Rows and columns of the tile."""
    warps: int


BY_TENSOR_CORES = Tiling(64, 4)
BY_REGISTERS = Tiling(32, 2)  # a larger tile, or more of it in a thread, would spill


def tiling_of(device: torch.device) -> Tiling:
    """For GPUs before sm_80 Triton multiplies without tensor cores."""
    older = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return BY_REGISTERS if older else BY_TENSOR_CORES


@triton.jit
def table_entry(table, i_matrix, column: tl.constexpr):
    """One number of a matrix, int64."""
    return tl.load(table + i_matrix * TABLE_COLUMNS + column)


@triton.jit
def _tile(tiles, table, TILE: tl.constexpr):
    """What a program makes: the tile, by row and column; its matrix's sides, in tiles, and its places."""
    p_tile = tiles + tl.program_id(0) * 3
    i_matrix, i_row, i_column = tl.load(p_tile).to(tl.int64), tl.load(p_tile + 1), tl.load(p_tile + 2)
    side, length = table_entry(table, i_matrix, 6).to(tl.int32), table_entry(table, i_matrix, 7).to(tl.int32)
    # Counted in tiles, and only here multiplied: thus the compiler knows that rows begin at multiples of 16 bytes.
    x_first = table_entry(table, i_matrix, 3) * (TILE * TILE)
    gram_first = table_entry(table, i_matrix, 8) * (TILE * TILE)
    return i_row, i_column, side, length, x_first, gram_first


@triton.jit
def _values_of(matrix, length, i_row, i_column, TILE: tl.constexpr):
    """Pointers to a tile of a matrix whose rows are so many tiles long."""
    o = tl.arange(0, TILE)
    return matrix + (i_row * TILE + o)[:, None] * (length * TILE) + (i_column * TILE + o)[None, :]


@triton.jit
def gram_kernel(x, grams, table, tiles, TILE: tl.constexpr):
    """X x'."""
    i_row, i_column, side, length, x_first, gram_first = _tile(tiles, table, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for k in range(length):
        left = tl.load(_values_of(x + x_first, length, i_row, k, TILE))
        right = tl.load(_values_of(x + x_first, length, i_column, k, TILE))
        total = tl.dot(left, tl.trans(right), total)
    p_gram = _values_of(grams + gram_first, side, i_row, i_column, TILE)
    tl.store(p_gram, total.to(grams.dtype.element_ty))


@triton.jit
def polynomial_kernel(
    grams, polynomials, table, tiles, linear, cubic, quintic,
    TILE: tl.constexpr,
):  # fmt: skip
    """Linear + cubic * a + quintic * a a, which is symmetric."""
    i_row, i_column, side, _, _, gram_first = _tile(tiles, table, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for k in range(side):
        left = tl.load(_values_of(grams + gram_first, side, i_row, k, TILE))
        right = tl.load(_values_of(grams + gram_first, side, k, i_column, TILE))
        total = tl.dot(left, right, total)
    b_gram = tl.load(_values_of(grams + gram_first, side, i_row, i_column, TILE)).to(tl.float32)
    o = tl.arange(0, TILE)
    diagonal = (i_row * TILE + o)[:, None] == (i_column * TILE + o)[None, :]
    total = quintic * total + cubic * b_gram + tl.where(diagonal, linear, 0.0)
    p_polynomial = _values_of(polynomials + gram_first, side, i_row, i_column, TILE)
    tl.store(p_polynomial, total.to(polynomials.dtype.element_ty))


@triton.jit
def apply_kernel(polynomials, x, result, table, tiles, TILE: tl.constexpr):
    """The polynomial times x."""
    i_row, i_column, side, length, x_first, gram_first = _tile(tiles, table, TILE)
    total = tl.zeros((TILE, TILE), tl.float32)
    for k in range(side):
        left = tl.load(_values_of(polynomials + gram_first, side, i_row, k, TILE))
        right = tl.load(_values_of(x + x_first, length, k, i_column, TILE))
        total = tl.dot(left, right, total)
    p_result = _values_of(result + x_first, length, i_row, i_column, TILE)
    tl.store(p_result, total.to(result.dtype.element_ty))


class TiledMatrices:
    """Matrices in tiles, and everything that their orthogonalisation needs, made once.

    Args:
        matrices: their shapes, and where they lie in the buffers.
        block: values of one program that goes value by value through such a buffer.
        device: a GPU.

    Attributes:
        tiling: of the products.
        x: fp16 [X], what is to be orthogonalised, of norms of at most 1; zeros between the values.
        result: fp16 [X], likewise.
        table: int64 [matrices, 10], see `TABLE_COLUMNS`.
        blocks: int32 [blocks, 2], of which matrix each is, and its place in it.
    """

    def __init__(self, matrices: Sequence[Matrices], block: int, device: torch.device) -> None:
        self.tiling = tiling_of(device)
        tile = self.tiling.side
        rows: list[tuple[int, ...]] = []
        blocks: list[tuple[int, int]] = []
        squares: list[tuple[int, int, int]] = []
        tiles: list[tuple[int, int, int]] = []
        for i_matrix, (first, numel, columns) in enumerate(_each(matrices)):
            height, tall = numel // columns, numel > columns**2
            side, length = (triton.cdiv(values, tile) for values in sorted((height, columns)))
            steps = (1, length * tile) if tall else (length * tile, 1)
            rows.append((first // 4, numel, columns, len(tiles), *steps, side, length, len(squares), len(blocks)))
            blocks += [(i_matrix, part) for part in range(triton.cdiv(numel, block))]
            squares += [(i_matrix, i, j) for i in range(side) for j in range(side)]
            tiles += [(i_matrix, i, j) for i in range(side) for j in range(length)]
        self.table = torch.tensor(rows, device=device)
        self.blocks, self._squares, self._tiles = (
            torch.tensor(places, dtype=torch.int32, device=device) for places in (blocks, squares, tiles)
        )
        self.x, self.result, self._grams, self._polynomials = (
            torch.zeros(len(places) * tile**2, dtype=torch.float16, device=device)
            for places in (tiles, tiles, squares, squares)
        )

    def orthogonalise(self) -> None:
        """Make `result` of `x`, which is used up."""
        squares, tiles = (len(self._squares),), (len(self._tiles),)
        constants = {"TILE": self.tiling.side, "num_warps": self.tiling.warps}
        source, target = self.x, self.result
        for _ in range(ITERATIONS):  # an odd number of times
            gram_kernel[squares](source, self._grams, self.table, self._squares, **constants)
            polynomial_kernel[squares](self._grams, self._polynomials, self.table, self._squares, *QUINTIC, **constants)
            apply_kernel[tiles](self._polynomials, source, target, self.table, self._tiles, **constants)
            source, target = target, source


def _each(matrices: Sequence[Matrices]) -> Iterator[tuple[int, int, int]]:
    """First value, number of values and columns of every matrix."""
    for one in matrices:
        for index in range(one.number):
            yield one.offset + index * one.pitch, one.rows * one.columns, one.columns
