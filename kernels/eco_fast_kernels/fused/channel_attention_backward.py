"""The backward pass of `channel_attention`, in Triton.

    attention_sums      upstream = first + second;                     sums of upstream and of upstream * x
    attention_gradient  gradient = scales * upstream + of_pixel;       of_bias, of_hidden, of_scales

    first, second, x                       float16 | bfloat16 | float32  [N, C, H, W] channels_last
    upstream, gradient                     like first
    sums, of_bias, of_hidden, of_scales    float32, of `ChannelGradients`: filled at the index

Reference: `channel_attention`.  Traffic, in images: 2 to 4, and 2.

A pixel's part of the means' gradient, of_pixel, is one number for each channel of a sample; each program computes its
sample's for itself, as the forward pass does the scales.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.library import triton_op, wrap_triton

from eco_fast_kernels.fused.channel_attention import (
    few_sums,
    small_constants,
    sum_of_parts,
    weight_block,
)
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


@triton.jit(do_not_specialize=["index"])
def attention_sums_kernel(
    first,
    second,  # None: 0
    x,
    upstream,  # None without a second
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
    total_product = tl.zeros((ROWS, COLUMNS), tl.float32)
    for top in range(0, PART, ROWS):
        o, mask = rows_of_part(top, count, CHANNELS, COLUMNS, ROWS)
        b_upstream = tl.load(first + start + o, mask=mask, other=0.0).to(tl.float32)
        if second is not None:
            b_second = tl.load(second + start + o, mask=mask, other=0.0).to(tl.float32)
            b_total = (b_upstream + b_second).to(upstream.dtype.element_ty)
            tl.store(upstream + start + o, b_total, mask=mask)
            b_upstream = b_total.to(tl.float32)
        total += b_upstream
        total_product += b_upstream * tl.load(x + start + o, mask=mask, other=0.0).to(tl.float32)
    store_sums(sums, total, 2 * index, CHANNELS, COLUMNS)
    store_sums(sums, total_product, 2 * index + 1, CHANNELS, COLUMNS)


@triton.jit(do_not_specialize=["index", "index_of_sums"])
def attention_gradient_kernel(
    upstream,
    bias,
    down,
    up,
    hidden,
    scales,
    sums,
    of_bias,
    of_hidden,
    of_scales,
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
    row_of_sums = (i_sample.to(tl.int64) + 2 * index_of_sums * samples) * parts_of_sums
    row_of_products = row_of_sums + samples * parts_of_sums
    is_first = tl.program_id(0) % parts == 0
    o_column = tl.arange(0, COLUMNS)
    m_column = (o_column < CHANNELS) & is_first
    b_bias = load_channels(bias, 0, CHANNELS, COLUMNS)
    b_scales = load_channels(scales, row, CHANNELS, COLUMNS)
    b_sum = sum_of_parts(sums, row_of_sums, parts_of_sums, CHANNELS, COLUMNS, PARTS)
    b_product = sum_of_parts(sums, row_of_products, parts_of_sums, CHANNELS, COLUMNS, PARTS)
    b_of_scales = (b_product + b_bias * b_sum) * b_scales * (1.0 - b_scales)
    tl.store(of_scales + row * CHANNELS + o_column, b_of_scales, mask=m_column)
    b_of_means = tl.zeros((COLUMNS,), tl.float32)
    for top in range(0, SQUEEZED, HIDDEN):
        i_hidden, o_down, o_up, mask = weight_block(top, CHANNELS, SQUEEZED, COLUMNS, HIDDEN)
        b_up = tl.load(up + o_up, mask=mask, other=0.0).to(tl.float32)
        b_hidden = tl.load(hidden + row * SQUEEZED + i_hidden, mask=i_hidden < SQUEEZED, other=0.0)
        b_of_hidden = tl.where(b_hidden > 0, tl.sum(b_up * b_of_scales[None, :], axis=1), 0.0)
        tl.store(of_hidden + row * SQUEEZED + i_hidden, b_of_hidden, mask=(i_hidden < SQUEEZED) & is_first)
        b_down = tl.load(down + o_down, mask=mask, other=0.0).to(tl.float32)
        b_of_means += tl.sum(b_down * b_of_hidden[:, None], axis=0)
    tl.store(of_bias + row * CHANNELS + o_column, b_scales * b_sum + b_of_means, mask=m_column)
    b_of_pixel = tl.div_rn(b_of_means, tl.full((COLUMNS,), pixels, tl.float32))
    for top in range(0, PART, ROWS):
        o, mask = rows_of_part(top, count, CHANNELS, COLUMNS, ROWS)
        b_upstream = tl.load(upstream + start + o, mask=mask, other=0.0).to(tl.float32)
        b_out = b_scales[None, :] * b_upstream + b_of_pixel[None, :]
        tl.store(out + start + o, b_out.to(out.dtype.element_ty), mask=mask)


@triton_op("eco_fast::attention_sums", mutates_args={"sums"})
def _attention_sums(first: Tensor, second: Tensor | None, x: Tensor, sums: Tensor, index: int) -> Tensor:
    first, x = dense(first), dense(x)
    second = None if second is None else dense(second)
    upstream = None if second is None else torch.empty_like(first)
    wrap_triton(attention_sums_kernel)[programs(x)](first, second, x, upstream, sums, *sizes(x), index, **constants(x))
    return first.new_empty(0) if upstream is None else upstream


@triton_op("eco_fast::attention_gradient", mutates_args={"of_bias", "of_hidden", "of_scales"})
def _attention_gradient(
    upstream: Tensor,
    bias: Tensor,
    down: Tensor,
    up: Tensor,
    hidden: Tensor,
    scales: Tensor,
    sums: Tensor,
    of_bias: Tensor,
    of_hidden: Tensor,
    of_scales: Tensor,
    index: int,
) -> Tensor:
    upstream = dense(upstream)
    out = torch.empty_like(upstream)
    few, index_of_few = few_sums(upstream, sums, 2 * len(upstream), index)
    wrap_triton(attention_gradient_kernel)[programs(upstream)](
        upstream,
        *(one.contiguous() for one in (bias, down, up)),
        hidden,
        scales,
        few,
        of_bias,
        of_hidden,
        of_scales,
        out,
        *sizes(upstream),
        index,
        few.shape[-2],
        index_of_few,
        **constants(upstream),
        **small_constants(upstream, len(down)),
    )
    return out
