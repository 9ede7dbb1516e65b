"""What follows a convolution in a residual network, in Triton.

    bias_relu        out = relu(x + bias)
    add_residual     out = residual + factor * factors * (x + bias)
    relu_gradient    out = upstream where activation > 0, else 0;                   sums of out
    merge_gradients  total = first + second;  branch = factor * factors * total;    sums of branch

    x, residual, upstream, activation, first, second   float16 | bfloat16 | float32  [N, C, H, W] channels_last
    out, total      like residual, upstream, first, or else x; add_residual's of any of these dtypes
    branch          likewise of any of these dtypes
    bias            float16 | bfloat16 | float32  [C];  factors  float32  [N] or None
    sums            float32  [ops, N * parts, C]: partial column sums, of which an op fills those at its index

Reference: `epilogues`.
Traffic, in images: bias_relu 2, add_residual 3, relu_gradient 3, merge_gradients 2 to 4. Sums are little.

A program has one part, `PART_PIXELS` pixels of a sample, and goes through it some rows at a time, 16 bytes a thread and
load where C is a multiple of 8. What it adds up stays in registers until its end. No atomics: the same input makes the
same bits. C and the factor are constants of the compiled code, for networks have one or two of each.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from eco_fast_kernels.epilogues import PART_PIXELS, parts_of
from eco_fast_kernels.fused import column_sums

BLOCK_VALUES = 1024  # that a program has in registers at a time: few enough that no generation spills


@triton.jit
def part_of_sample(parts, pixels, CHANNELS: tl.constexpr, PART: tl.constexpr):
    """A program's sample, its first value among those of all samples, and its number of pixels."""
    program = tl.program_id(0)
    i_sample = program // parts
    first = program % parts * PART
    start = (i_sample.to(tl.int64) * pixels + first) * CHANNELS
    return i_sample, start, tl.minimum(pixels - first, PART)


@triton.jit
def rows_of_part(top, count, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, ROWS: tl.constexpr):
    """The offsets of some rows of a part, and which of them are pixels and channels."""
    i_row = top + tl.arange(0, ROWS)
    o_column = tl.arange(0, COLUMNS)
    mask = (i_row < count)[:, None] & (o_column < CHANNELS)[None, :]
    return i_row[:, None] * CHANNELS + o_column[None, :], mask


@triton.jit
def store_sums(sums, total, index, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr):
    """A program's column sums in its row of those at the index."""
    o_column = tl.arange(0, COLUMNS)
    row = tl.program_id(0).to(tl.int64) + index * tl.num_programs(0)
    tl.store(sums + row * CHANNELS + o_column, tl.sum(total, axis=0), mask=o_column < CHANNELS)


@triton.jit
def load_channels(values, row, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr):
    """A row of values of channels, in float32; 0 for those that pad it."""
    o_column = tl.arange(0, COLUMNS)
    return tl.load(values + row * CHANNELS + o_column, mask=o_column < CHANNELS, other=0.0).to(tl.float32)


@triton.jit
def bias_relu_kernel(
    x,
    bias,
    out,
    parts,  # of a sample
    pixels,  # of a sample
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    PART: tl.constexpr,
):
    _, start, count = part_of_sample(parts, pixels, CHANNELS, PART)
    b_bias = load_channels(bias, 0, CHANNELS, COLUMNS)[None, :]
    for top in range(0, PART, ROWS):
        o, mask = rows_of_part(top, count, CHANNELS, COLUMNS, ROWS)
        b_sum = tl.load(x + start + o, mask=mask, other=0.0).to(tl.float32) + b_bias
        b_out = tl.where(b_sum <= 0, 0.0, b_sum)  # keeps NaN
        tl.store(out + start + o, b_out.to(out.dtype.element_ty), mask=mask)


@triton.jit
def add_residual_kernel(
    residual,
    x,
    bias,
    factors,  # may be None
    out,
    parts,
    pixels,
    FACTOR: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    PART: tl.constexpr,
):
    i_sample, start, count = part_of_sample(parts, pixels, CHANNELS, PART)
    b_bias = load_channels(bias, 0, CHANNELS, COLUMNS)[None, :]
    scale = FACTOR if factors is None else FACTOR * tl.load(factors + i_sample).to(tl.float32)
    for top in range(0, PART, ROWS):
        o, mask = rows_of_part(top, count, CHANNELS, COLUMNS, ROWS)
        b_residual = tl.load(residual + start + o, mask=mask, other=0.0).to(tl.float32)
        b_branch = tl.load(x + start + o, mask=mask, other=0.0).to(tl.float32) + b_bias
        tl.store(out + start + o, (b_residual + scale * b_branch).to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["index"])
def relu_gradient_kernel(
    upstream,
    activation,
    out,
    sums,
    parts,
    pixels,
    index,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    PART: tl.constexpr,
):
    _, start, count = part_of_sample(parts, pixels, CHANNELS, PART)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for top in range(0, PART, ROWS):
        o, mask = rows_of_part(top, count, CHANNELS, COLUMNS, ROWS)
        b_upstream = tl.load(upstream + start + o, mask=mask, other=0.0)
        b_activation = tl.load(activation + start + o, mask=mask, other=0.0).to(tl.float32)
        b_out = tl.where(b_activation <= 0, 0.0, b_upstream.to(tl.float32))  # keeps NaN
        total += b_out
        tl.store(out + start + o, b_out.to(out.dtype.element_ty), mask=mask)
    store_sums(sums, total, index, CHANNELS, COLUMNS)


@triton.jit(do_not_specialize=["index"])
def merge_gradients_kernel(
    first,
    second,  # None: 0
    factors,  # may be None
    total,  # None without a second
    branch,  # None where it is the total
    sums,
    parts,
    pixels,
    index,
    FACTOR: tl.constexpr,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    PART: tl.constexpr,
):
    i_sample, start, count = part_of_sample(parts, pixels, CHANNELS, PART)
    scale = FACTOR if factors is None else FACTOR * tl.load(factors + i_sample).to(tl.float32)
    added = tl.zeros((ROWS, COLUMNS), tl.float32)
    for top in range(0, PART, ROWS):
        o, mask = rows_of_part(top, count, CHANNELS, COLUMNS, ROWS)
        b_value = tl.load(first + start + o, mask=mask, other=0.0).to(tl.float32)
        if second is not None:
            b_second = tl.load(second + start + o, mask=mask, other=0.0).to(tl.float32)
            b_total = (b_value + b_second).to(total.dtype.element_ty)
            tl.store(total + start + o, b_total, mask=mask)
            b_value = b_total.to(tl.float32)
        if branch is not None:
            b_branch = (scale * b_value).to(branch.dtype.element_ty)
            tl.store(branch + start + o, b_branch, mask=mask)
            b_value = b_branch.to(tl.float32)
        added += b_value
    store_sums(sums, added, index, CHANNELS, COLUMNS)


@triton_op("eco_fast::bias_relu", mutates_args=())
def _bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    x = dense(x)
    out = torch.empty_like(x)
    wrap_triton(bias_relu_kernel)[programs(x)](x, bias.contiguous(), out, *sizes(x), **constants(x))
    return out


@triton_op("eco_fast::add_residual", mutates_args=())
def _add_residual(
    residual: Tensor,
    x: Tensor,
    bias: Tensor,
    factor: float,
    factors: Tensor | None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    residual, x = dense(residual), dense(x)
    out = torch.empty_like(residual, dtype=dtype)
    wrap_triton(add_residual_kernel)[programs(x)](
        residual, x, bias.contiguous(), factors, out, *sizes(x), FACTOR=factor, **constants(x)
    )
    return out


@triton_op("eco_fast::add_parts", mutates_args=())
def _add_parts(sums: Tensor, dtype: torch.dtype) -> Tensor:
    (total,) = column_sums.add_parts(sums, [dtype])
    return total


@triton_op("eco_fast::relu_gradient", mutates_args={"sums"})
def _relu_gradient(upstream: Tensor, activation: Tensor, sums: Tensor, index: int) -> Tensor:
    upstream, activation = dense(upstream), dense(activation)
    out = torch.empty_like(upstream)
    wrap_triton(relu_gradient_kernel)[programs(out)](
        upstream, activation, out, sums, *sizes(out), index, **constants(out)
    )
    return out


@triton_op("eco_fast::merge_gradients", mutates_args={"sums"})
def _merge_gradients(
    first: Tensor,
    second: Tensor | None,
    factor: float,
    factors: Tensor | None,
    dtype: torch.dtype,
    sums: Tensor,
    index: int,
) -> tuple[Tensor, Tensor]:
    first = dense(first)
    second = None if second is None else dense(second)
    total = None if second is None else torch.empty_like(first)
    same = factor == 1 and factors is None and dtype == first.dtype
    branch = None if same else torch.empty_like(first, dtype=dtype)
    wrap_triton(merge_gradients_kernel)[programs(first)](
        first, second, factors, total, branch, sums, *sizes(first), index, FACTOR=factor, **constants(first)
    )
    return (
        first.new_empty(0) if total is None else total,
        first.new_empty(0, dtype=dtype) if branch is None else branch,
    )


def dense(x: Tensor) -> Tensor:
    """Images as the kernels read them: themselves if they are channels_last."""
    return x.contiguous(memory_format=torch.channels_last)


def programs(x: Tensor) -> tuple[int]:
    """One for each part of each sample."""
    return (len(x) * parts_of(x),)


def sizes(x: Tensor) -> tuple[int, int]:
    """Parts and pixels of a sample."""
    return parts_of(x), x.shape[2] * x.shape[3]


def constants(x: Tensor) -> dict[str, int]:
    """What the kernels are compiled for."""
    channels = x.shape[1]
    columns = triton.next_power_of_2(channels)
    rows = max(1, min(PART_PIXELS, BLOCK_VALUES // columns))
    return {"CHANNELS": channels, "COLUMNS": columns, "ROWS": rows, "PART": PART_PIXELS}
