"""RCAN's channel attention with the bias before it and the residual behind it, forward, in Triton.

    channel_sums        sums of x
    attend_channels     z = x + bias;  scales = sigmoid(up relu(down mean(z) + down_bias) + up_bias)
                        out = residual + scales * z

    x, residual                         float16 | bfloat16 | float32  [N, C, H, W] channels_last
    bias, down, down_bias, up, up_bias  float16 | bfloat16 | float32  [C], [R, C], [R], [C, R], [C]
    sums, means, hidden, scales         float32, of `ChannelState`: filled at the index
    out                                 like residual

Source: Zhang et al., ECCV 2018.  Reference: `channel_attention`.  Traffic, in images: 1 and 3.

Programs have the parts of images that `epilogues` describes. Each computes its sample's scales for itself, from all of
the sample's sums: that costs less than a launch. Its products are elementwise in registers, a block of the hidden layer
at a time, and the program of a sample's first part stores what the backward pass needs. Images of more parts than
`MOST_PARTS` take one more launch, which adds up their sums to so many at most. All orders are fixed: same input, same
bits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from eco_fast_kernels.epilogues import parts_of
from eco_fast_kernels.fused.epilogues import (
    constants,
    dense,
    load_channels,
    part_of_sample,
    programs,
    rows_of_part,
    sizes,
    store_sums,
)

MOST_PARTS = 64  # that every program adds up
SMALL_BLOCK = 2048  # values of weights or sums that a program has in registers at a time


@triton.jit
def sum_of_parts(sums, row, count, CHANNELS: tl.constexpr, COLUMNS: tl.constexpr, PARTS: tl.constexpr):
    """The sum of some rows of partial sums."""
    o_column = tl.arange(0, COLUMNS)
    total = tl.zeros((PARTS, COLUMNS), tl.float32)
    for first in range(0, count, PARTS):
        i_part = first + tl.arange(0, PARTS)
        mask = (i_part < count)[:, None] & (o_column < CHANNELS)[None, :]
        total += tl.load(sums + row * CHANNELS + i_part[:, None] * CHANNELS + o_column[None, :], mask=mask, other=0.0)
    return tl.sum(total, axis=0)


@triton.jit
def weight_block(top, CHANNELS: tl.constexpr, SQUEEZED: tl.constexpr, COLUMNS: tl.constexpr, HIDDEN: tl.constexpr):
    """Some rows of the hidden layer: which, and the offsets of their weights in `down` and `up`, with a mask."""
    i_hidden = top + tl.arange(0, HIDDEN)
    o_column = tl.arange(0, COLUMNS)
    mask = (i_hidden < SQUEEZED)[:, None] & (o_column < CHANNELS)[None, :]
    o_down = i_hidden[:, None] * CHANNELS + o_column[None, :]
    return i_hidden, o_down, o_column[None, :] * SQUEEZED + i_hidden[:, None], mask


@triton.jit(do_not_specialize=["index"])
def channel_sums_kernel(
    x,
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
        total += tl.load(x + start + o, mask=mask, other=0.0).to(tl.float32)
    store_sums(sums, total, index, CHANNELS, COLUMNS)


@triton.jit(do_not_specialize=["index"])
def add_parts_kernel(
    sums,
    out,
    parts,
    groups,
    of_group,  # parts
    index,
    CHANNELS: tl.constexpr,
    COLUMNS: tl.constexpr,
    PARTS: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    first = program % groups * of_group
    row = (index * (tl.num_programs(0) // groups) + program // groups) * parts + first
    total = sum_of_parts(sums, row, tl.minimum(parts - first, of_group), CHANNELS, COLUMNS, PARTS)
    o_column = tl.arange(0, COLUMNS)
    tl.store(out + program * CHANNELS + o_column, total, mask=o_column < CHANNELS)


@triton.jit(do_not_specialize=["index", "index_of_sums"])
def attend_channels_kernel(
    x,
    residual,
    bias,
    down,
    down_bias,
    up,
    up_bias,
    sums,
    means,
    hidden,
    scales,
    out,
    parts,
    pixels,
    index,
    parts_of_sums,
    index_of_sums,
    CHANNELS: tl.constexpr,
    SQUEEZED: tl.constexpr,
    COLUMNS: tl.constexpr,
    ROWS: tl.constexpr,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    HIDDEN: tl.constexpr,
):
    i_sample, start, count = part_of_sample(parts, pixels, CHANNELS, PART)
    samples = tl.num_programs(0) // parts
    row = i_sample.to(tl.int64) + index * samples
    row_of_sums = (i_sample.to(tl.int64) + index_of_sums * samples) * parts_of_sums
    is_first = tl.program_id(0) % parts == 0
    o_column = tl.arange(0, COLUMNS)
    m_column = (o_column < CHANNELS) & is_first
    b_bias = load_channels(bias, 0, CHANNELS, COLUMNS)
    b_sum = sum_of_parts(sums, row_of_sums, parts_of_sums, CHANNELS, COLUMNS, PARTS)
    b_means = tl.div_rn(b_sum, tl.full((COLUMNS,), pixels, tl.float32)) + b_bias
    tl.store(means + row * CHANNELS + o_column, b_means, mask=m_column)
    b_up_sum = load_channels(up_bias, 0, CHANNELS, COLUMNS)
    for top in range(0, SQUEEZED, HIDDEN):
        i_hidden, o_down, o_up, mask = weight_block(top, CHANNELS, SQUEEZED, COLUMNS, HIDDEN)
        b_down = tl.load(down + o_down, mask=mask, other=0.0).to(tl.float32)
        b_hidden = tl.sum(b_down * b_means[None, :], axis=1)
        b_hidden += tl.load(down_bias + i_hidden, mask=i_hidden < SQUEEZED, other=0.0).to(tl.float32)
        b_hidden = tl.where(b_hidden <= 0, 0.0, b_hidden)  # keeps NaN
        tl.store(hidden + row * SQUEEZED + i_hidden, b_hidden, mask=(i_hidden < SQUEEZED) & is_first)
        b_up = tl.load(up + o_up, mask=mask, other=0.0).to(tl.float32)
        b_up_sum += tl.sum(b_up * b_hidden[:, None], axis=0)
    b_scales = tl.div_rn(tl.full((COLUMNS,), 1.0, tl.float32), 1.0 + tl.exp(-b_up_sum))
    tl.store(scales + row * CHANNELS + o_column, b_scales, mask=m_column)
    for top in range(0, PART, ROWS):
        o, mask = rows_of_part(top, count, CHANNELS, COLUMNS, ROWS)
        b_residual = tl.load(residual + start + o, mask=mask, other=0.0).to(tl.float32)
        b_z = tl.load(x + start + o, mask=mask, other=0.0).to(tl.float32) + b_bias[None, :]
        tl.store(out + start + o, (b_residual + b_scales[None, :] * b_z).to(out.dtype.element_ty), mask=mask)


@triton_op("eco_fast::channel_sums", mutates_args={"sums"})
def _channel_sums(x: Tensor, sums: Tensor, index: int) -> None:
    x = dense(x)
    wrap_triton(channel_sums_kernel)[programs(x)](x, sums, *sizes(x), index, **constants(x))


@triton_op("eco_fast::attend_channels", mutates_args={"means", "hidden", "scales"})
def _attend_channels(
    x: Tensor,
    residual: Tensor,
    bias: Tensor,
    down: Tensor,
    down_bias: Tensor,
    up: Tensor,
    up_bias: Tensor,
    sums: Tensor,
    means: Tensor,
    hidden: Tensor,
    scales: Tensor,
    index: int,
) -> Tensor:
    x, residual = dense(x), dense(residual)
    out = torch.empty_like(residual)
    few, index_of_few = few_sums(x, sums, len(x), index)
    wrap_triton(attend_channels_kernel)[programs(x)](
        x,
        residual,
        *(one.contiguous() for one in (bias, down, down_bias, up, up_bias)),
        few,
        means,
        hidden,
        scales,
        out,
        *sizes(x),
        index,
        few.shape[-2],
        index_of_few,
        **constants(x),
        **small_constants(x, len(down)),
    )
    return out


def few_sums(x: Tensor, sums: Tensor, rows: int, index: int) -> tuple[Tensor, int]:
    """Partial sums of at most `MOST_PARTS` parts, and where they are: as they are, or added up in groups.

    Args:
        x: the images.
        sums: float32 [blocks, ..., parts, C].
        rows: lists of parts at an index.
        index: where in the sums.
    """
    parts, options = parts_of(x), constants(x)
    if parts <= MOST_PARTS:
        return sums, index
    of_group = triton.cdiv(parts, MOST_PARTS)
    groups = triton.cdiv(parts, of_group)
    few = sums.new_empty((1, rows, groups, x.shape[1]))
    wrap_triton(add_parts_kernel)[(rows * groups,)](
        sums,
        few,
        parts,
        groups,
        of_group,
        index,
        CHANNELS=options["CHANNELS"],
        COLUMNS=options["COLUMNS"],
        PARTS=parts_at_a_time(x),
    )
    return few, 0


def parts_at_a_time(x: Tensor) -> int:
    """Rows of partial sums that a program reads at a time."""
    return max(1, SMALL_BLOCK // constants(x)["COLUMNS"])


def small_constants(x: Tensor, squeezed: int) -> dict[str, int]:
    """What the kernels with a small network are compiled for, beside `constants`."""
    hidden = min(triton.next_power_of_2(squeezed), parts_at_a_time(x))
    return {"SQUEEZED": squeezed, "PARTS": parts_at_a_time(x), "HIDDEN": hidden}
