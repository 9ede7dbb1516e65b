"""Fused bias and GELU, with its gradient, in Triton.

    y = z * Phi(z),  z = x + bias,  Phi(z) = (1 + erf(z / sqrt(2))) / 2

    x       float16 | bfloat16 | float32  [..., C], contiguous
    bias    any such dtype  [C]
    y       like x

    of_x = of_y * (Phi(z) + z * exp(-z**2 / 2) / sqrt(2 * pi))        of_bias = column sums of it, before its rounding

Source: Hendrycks and Gimpel, 2016.  Reference: `normalisation.bias_gelu`.  Launches: 1, and 2 for the gradient.
Traffic of 16-bit values: 4 bytes per value, and 6 for the gradient, which makes z again. Of the recipes' C, 120 and
360, all rows begin at multiples of 16 bytes, and x, y and the gradients are read and written 16 bytes a thread.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from eco_fast_kernels.fused.column_sums import add_parts, parts_of_rows, tile_of, tiles_of

TILE, MOST_COLUMNS = 2048, 128  # values of one tile; its columns, part of a row


@triton.jit
def normal_cdf(z):
    """Phi, off by at most 6e-8, and down to -5.5 by at most 2e-3 of itself.

    Phi(-|z|) = 2**(-1 + |z| * q(|z|)), and q, which is smooth, a minimax polynomial (Lawson's weights) for 0..5.5; from
    there the power falls on to 0. libdevice's erf costs twice the instructions, which a GPU with much bandwidth feels.
    """
    size = tl.abs(z)
    q = size * -5.53822323e-08 + 1.37355671e-06
    q = q * size - 1.50858725e-05
    q = q * size + 9.40220096e-05
    q = q * size - 3.22722703e-04
    q = q * size + 6.10807044e-05
    q = q * size + 6.89885824e-03
    q = q * size - 5.24224831e-02
    q = q * size - 4.59223644e-01
    q = q * size - 1.15110414
    tail = tl.exp2(q * size - 1.0)
    return tl.where(z > 0, 1.0 - tail, tail)


@triton.jit
def bias_gelu_kernel(x, bias, y, rows, C: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    i_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = i_column < C
    mask = (i_row < rows)[:, None] & m_column[None, :]
    o = i_row.to(tl.int64)[:, None] * C + i_column[None, :]
    b_bias = tl.load(bias + i_column, mask=m_column, other=0.0).to(tl.float32)
    b_z = tl.load(x + o, mask=mask, other=0.0).to(tl.float32) + b_bias[None, :]
    tl.store(y + o, (b_z * normal_cdf(b_z)).to(y.dtype.element_ty), mask=mask)


@triton.jit
def bias_gelu_gradient_kernel(
    of_y,
    x,
    bias,
    of_x,
    partial,
    rows,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
):
    i_column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    m_column = i_column < C
    b_bias = tl.load(bias + i_column, mask=m_column, other=0.0).to(tl.float32)[None, :]
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    first = tl.program_id(0) * TILES * ROWS
    for row in range(first, tl.minimum(first + TILES * ROWS, rows), ROWS):
        i_row = row + tl.arange(0, ROWS)
        mask = (i_row < rows)[:, None] & m_column[None, :]
        o = i_row.to(tl.int64)[:, None] * C + i_column[None, :]
        b_z = tl.load(x + o, mask=mask, other=0.0).to(tl.float32) + b_bias
        b_slope = normal_cdf(b_z) + b_z * tl.exp2(b_z * b_z * -0.7213475204444817) * 0.3989422804014327
        b_gradient = tl.load(of_y + o, mask=mask, other=0.0).to(tl.float32) * b_slope  # 0 beyond the last row
        tl.store(of_x + o, b_gradient.to(of_x.dtype.element_ty), mask=mask)
        total += b_gradient
    tl.store(partial + tl.program_id(0) * C + i_column, tl.sum(total, axis=0), mask=m_column)


def launch(x: Tensor, bias: Tensor) -> Tensor:
    """On checked arguments."""
    columns = x.shape[-1]
    rows = x.numel() // columns
    tile_rows, tile_columns = tile_of(columns, TILE, MOST_COLUMNS)
    y = torch.empty_like(x)
    wrap_triton(bias_gelu_kernel)[triton.cdiv(rows, tile_rows), triton.cdiv(columns, tile_columns)](
        x, bias, y, rows, C=columns, ROWS=tile_rows, COLUMNS=tile_columns
    )
    return y


def launch_gradient(of_y: Tensor, x: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of x and of the bias."""
    columns = x.shape[-1]
    rows = x.numel() // columns
    tile_rows, tile_columns = tile_of(columns, TILE, MOST_COLUMNS)
    of_x = torch.empty_like(x)
    parts = parts_of_rows(rows)
    partial = x.new_empty((1, parts, columns), dtype=torch.float32)
    wrap_triton(bias_gelu_gradient_kernel)[parts, triton.cdiv(columns, tile_columns)](
        of_y,
        x,
        bias,
        of_x,
        partial,
        rows,
        C=columns,
        ROWS=tile_rows,
        COLUMNS=tile_columns,
        TILES=tiles_of(tile_rows),
    )
    (of_bias,) = add_parts(partial, [bias.dtype])
    return of_x, of_bias


def _keep(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:  # noqa: ARG001
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, of_y: Tensor) -> tuple[Tensor, Tensor]:
    x, bias = ctx.saved_tensors
    of_x, of_bias = _gradient_op(of_y.contiguous(), x, bias)
    return of_x, of_bias


bias_gelu_op: Any = triton_op("eco_fast::bias_gelu", launch, mutates_args=())
_gradient_op: Any = triton_op("eco_fast::bias_gelu_gradient", launch_gradient, mutates_args=())
bias_gelu_op.register_autograd(_backward, setup_context=_keep)
