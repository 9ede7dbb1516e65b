"""Fused residual addition and LayerNorm, with its gradient, in Triton.

    total      = stream + factors[n] * (branch + branch_bias)
    normalised = (total - mean) / sqrt(variance + eps) * weight + bias        over the last dimension

    stream        float16 | bfloat16 | float32  [N, h, w, C], contiguous
    branch        likewise, of any such dtype, or None for 0        branch_bias  [C], with a branch alone
    factors       float32  [N], or None for 1                       weight, bias  [C]
    total         like the stream; without a branch empty, for it is the stream
    normalised    any such dtype  [N, h, w, C]
    statistics    float32  [2, N*h*w]: mean and 1 / sqrt(variance + eps), of the total as it was rounded

The gradient is one pass too: with u the normalised total's gradient times the weight and x = (total - mean) / std,

    of_stream = of_total + (u - mean(u) - x * mean(u * x)) / std        of_branch = factors[n] * of_stream

`of_branch` is stored only where it differs from `of_stream`: with factors, or in another dtype. The gradients of
weight, bias and branch_bias are column sums of the float32 values (see `column_sums`).

Source: Ba et al., 2016.  Reference: `normalisation.add_norm`.  Launches: 1, and 2 for the gradient.
Traffic of a float32 stream, and a branch and normalised values of 16 bits: 12 bytes per value (4 + 2 in, 4 + 2 out), 16
for the gradient (4 + 2 + 4 in, 4 + 2 out). Rows begin at multiples of C values, so C's divisors decide the accesses: of
the recipes' C, 60 and 180, float32 moves 16 bytes a thread and 16-bit values 8; where 8 divides C, all move 16.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from eco_fast_kernels.fused.column_sums import add_parts, parts_of_rows, tile_of, tiles_of
from eco_fast_kernels.normalisation import MOST_CHANNELS

TILE, GRADIENT_TILE = 4096, 2048  # values of one tile: whole rows, padded to a power of two


@triton.jit
def add_norm_kernel(
    residual,  # the stream, which is what inductor's launchers call an argument of their own
    branch,  # it, its bias and factors may be None
    branch_bias,
    factors,
    weight,
    bias,
    total,
    normalised,
    statistics,
    rows,
    pixels,  # of a sample
    EPS: tl.constexpr,  # compiled code would pass a float64
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    i_column = tl.arange(0, COLUMNS)
    m_row, m_column = i_row < rows, i_column < C
    mask = m_row[:, None] & m_column[None, :]
    o = i_row.to(tl.int64)[:, None] * C + i_column[None, :]
    b_total = tl.load(residual + o, mask=mask, other=0.0).to(tl.float32)
    if branch is not None:
        b_branch = tl.load(branch + o, mask=mask, other=0.0).to(tl.float32)
        b_branch += tl.load(branch_bias + i_column, mask=m_column, other=0.0).to(tl.float32)[None, :]
        if factors is not None:
            b_branch *= tl.load(factors + i_row // pixels, mask=m_row, other=0.0)[:, None]
        b_rounded = (b_total + b_branch).to(total.dtype.element_ty)
        tl.store(total + o, b_rounded, mask=mask)
        b_total = b_rounded.to(tl.float32)
    b_mean = tl.sum(b_total, axis=1) / C
    b_deviation = tl.where(mask, b_total - b_mean[:, None], 0.0)
    b_scale = tl.div_rn(1.0, tl.sqrt_rn(tl.sum(b_deviation * b_deviation, axis=1) / C + EPS))
    b_weight = tl.load(weight + i_column, mask=m_column, other=0.0).to(tl.float32)
    b_bias = tl.load(bias + i_column, mask=m_column, other=0.0).to(tl.float32)
    b_normalised = b_deviation * b_scale[:, None] * b_weight[None, :] + b_bias[None, :]
    tl.store(normalised + o, b_normalised.to(normalised.dtype.element_ty), mask=mask)
    tl.store(statistics + i_row, b_mean, mask=m_row)
    tl.store(statistics + rows + i_row, b_scale, mask=m_row)


@triton.jit
def add_norm_gradient_kernel(
    of_total,  # it, factors and of_branch may be None
    of_normalised,
    total,
    statistics,
    factors,
    weight,
    of_stream,
    of_branch,
    partial,
    rows,
    pixels,
    HAS_BRANCH: tl.constexpr,
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILES: tl.constexpr,
):
    i_column = tl.arange(0, COLUMNS)
    m_column = i_column < C
    b_weight = tl.load(weight + i_column, mask=m_column, other=0.0).to(tl.float32)[None, :]
    weight_sum = tl.zeros((COLUMNS,), tl.float32)
    bias_sum = tl.zeros((COLUMNS,), tl.float32)
    branch_sum = tl.zeros((COLUMNS,), tl.float32)
    first = tl.program_id(0) * TILES * ROWS
    for row in range(first, tl.minimum(first + TILES * ROWS, rows), ROWS):
        i_row = row + tl.arange(0, ROWS)  # beyond the last row, 1 / std and upstream gradients are 0, and so are sums
        m_row = i_row < rows
        mask = m_row[:, None] & m_column[None, :]
        o = i_row.to(tl.int64)[:, None] * C + i_column[None, :]
        b_mean = tl.load(statistics + i_row, mask=m_row, other=0.0)[:, None]
        b_scale = tl.load(statistics + rows + i_row, mask=m_row, other=0.0)[:, None]
        b_x = (tl.load(total + o, mask=mask, other=0.0).to(tl.float32) - b_mean) * b_scale
        b_upstream = tl.load(of_normalised + o, mask=mask, other=0.0).to(tl.float32)
        weight_sum += tl.sum(b_upstream * b_x, axis=0)
        bias_sum += tl.sum(b_upstream, axis=0)
        b_upstream *= b_weight
        b_level = tl.sum(b_upstream, axis=1)[:, None] / C
        b_slope = tl.sum(b_upstream * b_x, axis=1)[:, None] / C
        b_gradient = (b_upstream - b_level - b_x * b_slope) * b_scale
        if of_total is not None:
            b_gradient += tl.load(of_total + o, mask=mask, other=0.0).to(tl.float32)
        tl.store(of_stream + o, b_gradient.to(of_stream.dtype.element_ty), mask=mask)
        if HAS_BRANCH:
            if factors is not None:
                b_gradient *= tl.load(factors + i_row // pixels, mask=m_row, other=0.0)[:, None]
            if of_branch is not None:
                tl.store(of_branch + o, b_gradient.to(of_branch.dtype.element_ty), mask=mask)
            branch_sum += tl.sum(b_gradient, axis=0)
    parts = tl.num_programs(0)
    p_partial = partial + tl.program_id(0) * C + i_column
    tl.store(p_partial, weight_sum, mask=m_column)
    tl.store(p_partial + parts * C, bias_sum, mask=m_column)
    if HAS_BRANCH:
        tl.store(p_partial + 2 * parts * C, branch_sum, mask=m_column)


def launch(
    stream: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    factors: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """On checked arguments: total, normalised, statistics."""
    columns = stream.shape[-1]
    rows = stream.numel() // columns
    tile_rows, padded = tile_of(columns, TILE, MOST_CHANNELS)
    total = stream.new_empty(0) if branch is None else torch.empty_like(stream)
    normalised = torch.empty_like(stream, dtype=dtype)
    statistics = stream.new_empty((2, rows), dtype=torch.float32)
    wrap_triton(add_norm_kernel)[triton.cdiv(rows, tile_rows),](
        stream,
        branch,
        branch_bias,
        factors,
        weight,
        bias,
        None if branch is None else total,
        normalised,
        statistics,
        rows,
        rows // len(stream),
        EPS=eps,
        C=columns,
        ROWS=tile_rows,
        COLUMNS=padded,
    )
    return total, normalised, statistics


def launch_gradient(
    of_total: Tensor | None,
    of_normalised: Tensor,
    total: Tensor,
    statistics: Tensor,
    factors: Tensor | None,
    weight: Tensor,
    bias_dtype: torch.dtype,
    branch_dtype: torch.dtype | None,
    branch_bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the stream, of the branch, and of weight, bias and branch_bias.

    The last two dtypes are None without a branch, and then its gradients are empty. The branch's is empty too where it
    is the stream's, for two outputs of an op must not be one tensor.
    """
    columns = total.shape[-1]
    rows = total.numel() // columns
    tile_rows, padded = tile_of(columns, GRADIENT_TILE, MOST_CHANNELS)
    has_branch = branch_dtype is not None
    stored = has_branch and (factors is not None or branch_dtype != total.dtype)
    of_stream = torch.empty_like(total)
    of_branch = torch.empty_like(total, dtype=branch_dtype) if stored else total.new_empty(0)
    parts = parts_of_rows(rows)
    partial = total.new_empty((2 + has_branch, parts, columns), dtype=torch.float32)
    wrap_triton(add_norm_gradient_kernel)[parts,](
        of_total,
        of_normalised,
        total,
        statistics,
        factors,
        weight,
        of_stream,
        of_branch if stored else None,
        partial,
        rows,
        rows // len(total),
        HAS_BRANCH=has_branch,
        C=columns,
        ROWS=tile_rows,
        COLUMNS=padded,
        TILES=tiles_of(tile_rows),
    )
    dtypes = [weight.dtype, bias_dtype] if branch_bias_dtype is None else [weight.dtype, bias_dtype, branch_bias_dtype]
    of_weight, of_bias, *of_branch_bias = add_parts(partial, dtypes)
    return of_stream, of_branch, of_weight, of_bias, of_branch_bias[0] if has_branch else total.new_empty(0)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    stream, branch, branch_bias, factors, weight, bias, *_ = inputs
    total, _, statistics = output
    ctx.set_materialize_grads(False)  # a total that nobody reads on costs nothing
    ctx.mark_non_differentiable(statistics)
    ctx.save_for_backward(stream if branch is None else total, statistics, factors, weight)
    ctx.dtypes = [None if one is None else one.dtype for one in (bias, branch, branch_bias)]


def _backward(
    ctx: Any, of_total: Tensor | None, of_normalised: Tensor | None, _: Tensor | None
) -> tuple[Tensor | None, ...]:
    total, statistics, factors, weight = ctx.saved_tensors
    if of_normalised is None:
        of_normalised = torch.zeros_like(total)
    of_stream, of_branch, of_weight, of_bias, of_branch_bias = _gradient_op(
        None if of_total is None else of_total.contiguous(),
        of_normalised.contiguous(),
        total,
        statistics,
        factors,
        weight,
        *ctx.dtypes,
    )
    if ctx.dtypes[1] is None:
        of_branch = of_branch_bias = None
    elif not of_branch.numel():
        of_branch = of_stream
    return of_stream, of_branch, of_branch_bias, None, of_weight, of_bias, None, None


add_norm_op: Any = triton_op("eco_fast::add_norm", launch, mutates_args=())
_gradient_op: Any = triton_op("eco_fast::add_norm_gradient", launch_gradient, mutates_args=())
add_norm_op.register_autograd(_backward, setup_context=_keep)
