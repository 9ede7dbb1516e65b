"""Attention in windows, in Triton; `window_attention_backward` has its gradients.

    out = softmax(q k' / sqrt(SIZE) + bias + mask) v        for each window and head

    qkv       float16 | bfloat16 | float32  [N, h, w, 3*C], C = HEADS * SIZE: q, k and v without their bias, each of
              its heads in turn; h and w are multiples of the window's side
    qkv_bias  floating point  [3*C], added to them
    table     floating point  [(2*SIDE - 1)**2, HEADS], the bias of two tokens by their relative position
    out       like qkv, [N, h, w, C]

Source: Liu et al., ICCV 2021 (Swin Transformer).  Reference: `attention.window_attention`.
Traffic, in elements for each token: 4*C (qkv, out). Nothing is rolled, cut, padded or joined, and no bias, mask or
score of all pairs of tokens is in memory: windows, mask and relative positions are index arithmetic.

A program has one head and ROWS queries of a window, and goes through a run of windows with the scores' bias in
registers. Softmax does not see what all scores of a query have in common, so the keys need no bias; its rows add up to
one, so the values' bias is added to the output.
"""

import triton
import triton.language as tl
from torch import Tensor
from torch.library import wrap_triton

from eco_fast_kernels.fused.window_tiles import (
    TileForm,
    constants_of,
    grid_of,
    load_tile,
    mask_of,
    part_of_bias,
    places_of,
    position_bias,
    store_tile,
)

PROGRAMS = 2048  # about so many, whatever the device: some waves on a large one, and runs that pay off


@triton.jit
def attend_kernel(
    qkv,
    qkv_bias,
    table,
    out,
    height,
    width,
    windows,  # of all images
    run,  # windows of a program
    scale,  # of the scores; a constant would be multiplied again for each layout that a product wants
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    SIDE: tl.constexpr,
    SHIFT: tl.constexpr,
    ROWS: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
):
    operand: tl.constexpr = qkv.dtype.element_ty if TENSOR_CORES else tl.float32
    precision: tl.constexpr = "tf32" if TENSOR_CORES else "ieee"  # of float32
    scale = tl.cast(scale, tl.float32)  # the compiler hands it on in float64
    tokens: tl.constexpr = SIDE * SIDE
    head = tl.program_id(0).to(tl.int64)
    i_k = tl.arange(0, tokens)
    i_q = i_k if tokens == ROWS else tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    b_position = position_bias(table, head, i_q[:, None], i_k[None, :], HEADS, SIDE)
    b_q = part_of_bias(qkv_bias, head, 0, HEADS, SIZE, PADDED)
    b_v = part_of_bias(qkv_bias, head, 2, HEADS, SIZE, PADDED)
    first = tl.program_id(1) * run
    for window in range(first, tl.minimum(first + run, windows)):
        p_k = places_of(window, i_k, height, width, SIDE, SHIFT)
        p_q = p_k if tokens == ROWS else places_of(window, i_q, height, width, SIDE, SHIFT)
        q = ((load_tile(qkv, p_q, head, 0, 3, HEADS, SIZE, PADDED).to(tl.float32) + b_q) * scale).to(operand)
        k = load_tile(qkv, p_k, head, 1, 3, HEADS, SIZE, PADDED).to(operand)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) + b_position
        if SHIFT:
            scores += mask_of(window, i_q[:, None], i_k[None, :], height, width, SIDE, SHIFT)
        p = tl.exp(scores - tl.max(scores, axis=1)[:, None])
        v = load_tile(qkv, p_k, head, 2, 3, HEADS, SIZE, PADDED).to(operand)
        attended = tl.dot(p.to(operand), v, input_precision=precision) / tl.sum(p, axis=1)[:, None] + b_v
        store_tile(out, attended, p_q, head, 0, 1, HEADS, SIZE, PADDED)


def launch(qkv: Tensor, qkv_bias: Tensor, table: Tensor, window: int, shift: int, form: TileForm) -> Tensor:
    """Run the kernel on checked arguments: the output."""
    samples, height, width, channels = qkv.shape
    heads = table.shape[1]
    out = qkv.new_empty((samples, height, width, channels // 3))
    grid, run = grid_of(qkv, heads, window, form.rows, PROGRAMS)
    wrap_triton(attend_kernel)[grid](
        qkv,
        qkv_bias,
        table,
        out,
        height,
        width,
        samples * height * width // window**2,
        run,
        (channels // 3 // heads) ** -0.5,
        **constants_of(channels, heads, window, shift, form),
    )
    return out
