"""Fused downsampling and blending, in Triton.

    out = (D(sr) + alpha * (D(hr) - D(sr))) / 255        D: MATLAB's imresize(A, 1/scale, "bicubic"), 8-bit

    hr, sr   uint8    [N, scale*h + 4*scale, scale*w + 4*scale, 3], a margin of 2*scale pixels a side, 0..255
    alpha    float32  [] or [N], weight of hr, 0..1
    out      float16 | bfloat16 | float32  [N, 3, h, w] channels_last, 0..1; or the uint8 of D alone, NHWC

D is computed in whole numbers (int32; int64 for the second pass of "im2double"), so its bytes are those of every other
implementation of the formula. The blend is float32, rounded once at the store. Samples flagged as transposed are
downsampled columns first, because MATLAB rounds between the passes.

Source: Lee and Heo, AAAI 2024, Eq. 14.  Reference: `reference.downsample_blend`.
Traffic: 2 * scale**2 * (1 + 4/h) * (1 + 4/w) + out.element_size() bytes per output value are compulsory. Each program
asks for every row under its stencil, 3.3 to 3.7 times as much, which the caches serve. Rows are read 16 bytes a thread
where they lie as `crops` lays them; a 16-bit output is written 16 bytes a thread.

One program makes one output row of up to 48 pixels of one sample. Rows first: sum the weighted rows in registers,
round, then gather each output's taps from the summed row. Columns first: the same with the gathering inside the sum.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_fast_kernels.crops import ALIGNMENT, CHANNELS, aligned_start, first_present, row_bytes, with_same_layout
from eco_fast_kernels.downsampling import STENCILS, Rounding

PIXELS = 48  # output pixels of one program: 48 * 3 * scale bytes keep the next program's rows 16-byte aligned
BLOCK_OUT = 256  # of which 144 are used


@triton.jit
def _divide(total, DENOMINATOR: tl.constexpr):
    """Round total / DENOMINATOR half up and clip to 0..255."""
    # Clipping first makes the dividend positive, where truncation is the floor.
    return tl.minimum((2 * tl.maximum(total, 0) + DENOMINATOR) // (2 * DENOMINATOR), 255)


@triton.jit
def _weight(distance, SCALE: tl.constexpr, DENOMINATOR: tl.constexpr):
    """The weight of a pixel distance / (2 * SCALE) output pixels away: the bicubic kernel, a = -0.5, in whole numbers.

    The kernel times 16 * SCALE**3 is whole; the taps of an output pixel weigh SCALE times as much together.
    """
    return (
        (3 * distance - 10 * SCALE) * distance * distance + 16 * SCALE * SCALE * SCALE
        if distance <= 2 * SCALE
        else ((10 * SCALE - distance) * distance - 32 * SCALE * SCALE) * distance + 32 * SCALE * SCALE * SCALE
    ) // (16 * SCALE * SCALE * SCALE * SCALE // DENOMINATOR)


@triton.jit
def _gather_row(row, i_tap, TAPS: tl.constexpr, SCALE: tl.constexpr, DENOMINATOR: tl.constexpr, WIDE: tl.constexpr):
    """Weighted sums of a row's values at `i_tap`, `i_tap` + one pixel, ..."""
    total = tl.zeros(i_tap.shape, tl.int64 if WIDE else tl.int32)
    for tap in range(TAPS):
        b_value = tl.gather(row, i_tap + 3 * tap, 0)
        weight = _weight(max(2 * tap + 1 - TAPS, TAPS - 1 - 2 * tap), SCALE, DENOMINATOR)
        if WIDE:
            total += b_value.to(tl.int64) * weight
        else:
            total += b_value * weight
    return total


@triton.jit
def _downsample_row(
    p_rows,  # the first of the rows that this output row needs, uint8
    pitch,  # bytes from row to row
    lead,  # bytes before the first pixel
    m_in,
    columns_first,
    TAPS: tl.constexpr,
    SCALE: tl.constexpr,
    FIRST: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    ROUND_BETWEEN: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    """One output row of D: int32 [BLOCK_OUT], 0..255."""
    o_in = tl.arange(0, BLOCK_IN)
    o_out = tl.arange(0, BLOCK_OUT)
    i_tap = lead + (o_out // 3 * SCALE + FIRST) * 3 + o_out % 3
    i_tap = tl.minimum(i_tap, BLOCK_IN - 3 * TAPS)  # lanes beyond the row gather something, and store nothing
    if ROUND_BETWEEN and columns_first:
        rows = tl.zeros((BLOCK_OUT,), tl.int32)
        for tap in range(TAPS):
            b_row = tl.load(p_rows + tap * pitch + o_in, mask=m_in, other=0).to(tl.int32)
            b_sum = _divide(_gather_row(b_row, i_tap, TAPS, SCALE, DENOMINATOR, False), DENOMINATOR)
            rows += b_sum * _weight(max(2 * tap + 1 - TAPS, TAPS - 1 - 2 * tap), SCALE, DENOMINATOR)
        value = _divide(rows, DENOMINATOR)
    else:
        summed = tl.zeros((BLOCK_IN,), tl.int32)
        for tap in range(TAPS):
            b_row = tl.load(p_rows + tap * pitch + o_in, mask=m_in, other=0).to(tl.int32)
            summed += b_row * _weight(max(2 * tap + 1 - TAPS, TAPS - 1 - 2 * tap), SCALE, DENOMINATOR)
        if ROUND_BETWEEN:
            summed = _divide(summed, DENOMINATOR)
            value = _divide(_gather_row(summed, i_tap, TAPS, SCALE, DENOMINATOR, False), DENOMINATOR)
        else:
            total = _gather_row(summed, i_tap, TAPS, SCALE, DENOMINATOR, True)
            value = _divide(total, DENOMINATOR * DENOMINATOR).to(tl.int32)
    return value


@triton.jit
def downsample_blend_kernel(
    hr,  # hr or sr, alpha and transposed may be None
    sr,
    alpha,
    transposed,
    out,
    sample_pitch,  # bytes from sample to sample
    pitch,  # bytes from row to row
    lead,  # bytes from the start of a row to its first pixel
    in_width,  # bytes of a row that may be read, from its start
    out_height,
    out_width,  # values of an output row
    alpha_stride,  # 0: one alpha for all samples
    NORMALISE: tl.constexpr,
    TAPS: tl.constexpr,
    SCALE: tl.constexpr,
    FIRST: tl.constexpr,
    DENOMINATOR: tl.constexpr,
    ROUND_BETWEEN: tl.constexpr,
    PIXELS: tl.constexpr,
    BLOCK_IN: tl.constexpr,
    BLOCK_OUT: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64)  # int64: a set of images passes 2**31 bytes
    i_sample, i_line = i_row // out_height, i_row % out_height
    i_chunk = tl.program_id(1)
    in_left = i_chunk * (PIXELS * SCALE * 3)
    out_left = i_chunk * (PIXELS * 3)
    start = i_sample * sample_pitch + (i_line * SCALE + FIRST) * pitch + in_left
    m_in = tl.arange(0, BLOCK_IN) < in_width - in_left
    columns_first = tl.load(transposed + i_sample) != 0 if transposed is not None else False

    if hr is not None:
        b_hr = _downsample_row(
            hr + start, pitch, lead, m_in, columns_first,
            TAPS, SCALE, FIRST, DENOMINATOR, ROUND_BETWEEN, BLOCK_IN, BLOCK_OUT,
        )  # fmt: skip
    if sr is not None:
        b_sr = _downsample_row(
            sr + start, pitch, lead, m_in, columns_first,
            TAPS, SCALE, FIRST, DENOMINATOR, ROUND_BETWEEN, BLOCK_IN, BLOCK_OUT,
        )  # fmt: skip
    if hr is not None and sr is not None:
        b_alpha = tl.load(alpha + i_sample * alpha_stride)
        b_centroid = b_sr.to(tl.float32)
        b_out = b_centroid + b_alpha * (b_hr.to(tl.float32) - b_centroid)
    elif hr is not None:
        b_out = b_hr.to(tl.float32)
    else:
        b_out = b_sr.to(tl.float32)
    if NORMALISE:
        b_out = tl.div_rn(b_out, tl.full((BLOCK_OUT,), 255.0, tl.float32))
    o_out = tl.arange(0, BLOCK_OUT)
    m_out = (o_out < PIXELS * 3) & (o_out < out_width - out_left)
    tl.store(out + i_row * out_width + out_left + o_out, b_out.to(out.dtype.element_ty), mask=m_out)


def kernel_constants(scale: int, rounding: Rounding) -> dict[str, int | bool]:
    """The compile-time constants of a scale and a rounding."""
    half, denominator = STENCILS[scale]
    return {
        "TAPS": 2 * len(half) - scale % 2,
        "SCALE": scale,
        "FIRST": scale // 2 if scale % 2 == 0 else 2,
        "DENOMINATOR": denominator,
        "ROUND_BETWEEN": rounding == "uint8",
        "PIXELS": PIXELS,
        "BLOCK_IN": triton.next_power_of_2((PIXELS + 4) * scale * CHANNELS + ALIGNMENT),
        "BLOCK_OUT": BLOCK_OUT,
    }


WARPS = 1  # 144 outputs are 8 for each thread of one warp: 16 bytes of a 16-bit output
REGISTERS = 168  # a bound: without one, ptxas spills a few at x8 for sm_100 to fit more programs on a processor


def launch(
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor | None,
    scale: int,
    rounding: Rounding,
    transposed: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """Run the kernel on checked arguments; dtype uint8 returns D of one image alone, [N, h, w, 3], else see the module.

    Where one image is given, alpha is not read and may be None.
    """
    if hr is not None and sr is not None:
        hr, sr = with_same_layout(hr, sr)
    present = first_present("downsample_blend", hr, sr)
    samples, height, width, channels = present.shape
    out_height, out_width = height // scale - 4, (width // scale - 4) * channels
    out = torch.empty((samples, out_height, out_width // channels, channels), dtype=dtype, device=present.device)
    lead = aligned_start(present)[1]
    grid = (samples * out_height, triton.cdiv(out_width, PIXELS * CHANNELS))
    downsample_blend_kernel[grid](
        None if hr is None else aligned_start(hr)[0],
        None if sr is None else aligned_start(sr)[0],
        alpha,
        None if transposed is None else transposed.contiguous().view(torch.uint8),
        out,
        present.stride(0),
        present.stride(1),
        lead,
        min(row_bytes(image, lead) for image in (hr, sr) if image is not None),
        out_height,
        out_width,
        alpha.stride(0) if alpha is not None and alpha.ndim else 0,
        NORMALISE=dtype != torch.uint8,
        num_warps=WARPS,
        maxnreg=REGISTERS,
        **kernel_constants(scale, rounding),
    )
    return out if dtype == torch.uint8 else out.permute(0, 3, 1, 2)
