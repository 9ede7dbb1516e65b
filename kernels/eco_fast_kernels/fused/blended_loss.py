"""Fused loss against the blended target, with its gradient, in Triton.

    loss     = mean of l(d),  d = 255 * prediction - (sr + alpha * (hr - sr))        in grey levels
    gradient = gradient_scale * l'(d) * 255 / numel

    l1: |d|        l2: d**2        charbonnier: sqrt(d**2 + 0.255**2)

    prediction      float16 | bfloat16 | float32  [N, 3, H, W] channels_last, 0..1
    hr, sr          uint8    [N, H + 2*margin, W + 2*margin, 3], 0..255; the margin is no part of the target
    alpha           float32  [] or [N], weight of hr, 0..1
    gradient_scale  float32  [], the upstream gradient that is expected (a gradient scaler's factor), or None for 1
    loss            float32  [];  finite  bool [];  gradient  like prediction

Source: Lee and Heo, AAAI 2024, Eq. 14.  Reference: `reference.blended_loss`.
Traffic: 2 * prediction.element_size() + 2 bytes per value (prediction, hr, sr, gradient; 6 with a 16-bit prediction),
for the loss and its gradient together. The blended target is never stored.

Sums are made in a fixed order: each program's partial sum is stored, and one program adds them up. No atomics.
Prediction and gradient are read and written 16 bytes a thread, and so are hr and sr that lie as `crops` lays them.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_fast_kernels.crops import aligned_start, first_present, with_same_layout
from eco_fast_kernels.reference import CHARBONNIER_EPSILON, LossKind

TILE_ROWS, TILE_COLUMNS = 32, 64  # values of one tile
BLOCK_SUM = 1024
REGISTERS = (
    128  # a bound far above what is needed: without one, ptxas spills a few to fit one program more on a processor
)


@triton.jit
def blended_loss_kernel(
    prediction,
    hr,  # hr or sr, and gradient_scale, may be None
    sr,
    alpha,
    gradient_scale,
    gradient,
    partial,
    rows,  # image rows in the batch
    height,
    width,  # values of a row
    sample_pitch,  # bytes from crop to crop
    pitch,  # bytes from row to row of a crop
    inset,  # bytes from a crop's start to its target
    alpha_stride,  # 0: one alpha for all samples
    gradient_of_mean,  # 255 / numel
    KIND: tl.constexpr,
    EPSILON: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    i_row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    m_row = i_row < rows
    i_sample = i_row // height
    p_values = i_row * width
    p_bytes = i_sample * sample_pitch + (i_row % height) * pitch + inset
    b_alpha = tl.load(alpha + i_sample * alpha_stride, mask=m_row, other=0.0)[:, None]
    scale = gradient_of_mean if gradient_scale is None else tl.load(gradient_scale) * gradient_of_mean
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for left in range(0, width, COLUMNS):
        o_column = left + tl.arange(0, COLUMNS)
        mask = m_row[:, None] & (o_column < width)[None, :]
        o_values = p_values[:, None] + o_column[None, :]
        o_bytes = p_bytes[:, None] + o_column[None, :]
        b_prediction = tl.load(prediction + o_values, mask=mask, other=0.0).to(tl.float32) * 255.0
        if hr is not None and sr is not None:
            b_sr = tl.load(sr + o_bytes, mask=mask, other=0).to(tl.float32)
            b_hr = tl.load(hr + o_bytes, mask=mask, other=0).to(tl.float32)
            b_target = b_sr + b_alpha * (b_hr - b_sr)
        elif hr is not None:
            b_target = tl.load(hr + o_bytes, mask=mask, other=0).to(tl.float32)
        else:
            b_target = tl.load(sr + o_bytes, mask=mask, other=0).to(tl.float32)
        b_difference = b_prediction - b_target
        if KIND == "l1":
            b_loss = tl.abs(b_difference)
            b_slope = tl.where(b_difference > 0, 1.0, tl.where(b_difference < 0, -1.0, b_difference))  # keeps NaN, 0
        elif KIND == "l2":
            b_loss = b_difference * b_difference
            b_slope = 2.0 * b_difference
        else:
            b_loss = tl.sqrt_rn(b_difference * b_difference + EPSILON * EPSILON)
            b_slope = tl.div_rn(b_difference, b_loss)
        total += tl.where(mask, b_loss, 0.0)
        tl.store(gradient + o_values, (b_slope * scale).to(gradient.dtype.element_ty), mask=mask)
    tl.store(partial + tl.program_id(0), tl.sum(tl.sum(total, axis=1), axis=0))


@triton.jit
def sum_kernel(partial, loss, finite, count, numel, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.float64)
    for start in range(0, count, BLOCK):
        o = start + tl.arange(0, BLOCK)
        total += tl.load(partial + o, mask=o < count, other=0.0).to(tl.float64)
    mean = (tl.sum(total, axis=0) / numel).to(tl.float32)
    tl.store(loss, mean)
    tl.store(finite, (tl.abs(mean) < float("inf")).to(tl.uint8))


def launch(
    prediction: Tensor,
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    kind: LossKind,
    margin: int,
    gradient_scale: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run both stages on checked arguments: loss, gradient, finite."""
    if hr is not None and sr is not None:
        hr, sr = with_same_layout(hr, sr)
    crops = first_present("blended_loss", hr, sr)
    samples, channels, height, width = prediction.shape
    rows = samples * height
    programs = triton.cdiv(rows, TILE_ROWS)
    gradient = torch.empty_like(prediction)
    partial = prediction.new_empty(programs, dtype=torch.float32)
    loss = prediction.new_empty((), dtype=torch.float32)
    finite = prediction.new_empty((), dtype=torch.bool)
    blended_loss_kernel[(programs,)](
        prediction,
        None if hr is None else aligned_start(hr)[0],
        None if sr is None else aligned_start(sr)[0],
        alpha,
        gradient_scale,
        gradient,
        partial,
        rows,
        height,
        width * channels,
        crops.stride(0),
        crops.stride(1),
        aligned_start(crops)[1] + margin * (crops.stride(1) + channels),
        alpha.stride(0) if alpha.ndim else 0,
        255 / prediction.numel(),
        KIND=kind,
        EPSILON=CHARBONNIER_EPSILON,
        ROWS=TILE_ROWS,
        COLUMNS=TILE_COLUMNS,
        num_warps=4,
        maxnreg=REGISTERS,
    )
    sum_kernel[(1,)](
        partial, loss, finite.view(torch.uint8), programs, prediction.numel(), BLOCK=BLOCK_SUM, num_warps=4
    )
    return loss, gradient, finite
