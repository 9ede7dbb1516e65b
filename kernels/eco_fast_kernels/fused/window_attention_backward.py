"""The gradients of attention in windows, in Triton.

    upstream           like the output of `window_attention`: its gradient
    gradient           like qkv
    gradient_of_bias   like qkv_bias
    gradient_of_table  like table

Traffic, in elements for each token: 7*C (qkv, upstream, gradient) where a program has a whole window. Otherwise it has
some queries and all keys, a second kernel has some keys and all queries for the gradients of keys and values, and 8
bytes for each token and head go from one to the other: the softmax's sums, and what its gradients have in common.

Scores are made again; neither they nor their gradients are stored. A program adds up the scores' gradients of its run
of windows in registers, and folds them at its end to one value for each relative position, by products with matrices
of zeros and ones. Each program's values are stored, and a last kernel adds them up in a fixed order. No atomics.

Two gradients need no product: the keys' bias has none, because softmax does not see it, and that of the values' bias is
the sum of `upstream`.
"""

import torch
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

PROGRAMS = 1024  # about so many, whatever the device: each stores its sums
SUMMED_PROGRAMS, SUMMED_VALUES = 64, 32


@triton.jit
def query_gradients_kernel(
    qkv,
    qkv_bias,
    table,
    upstream,
    gradient,
    partial,  # [programs, HEADS, 4*T + 2*PADDED]: by relative position; of the queries' bias, of the values' bias
    log_sums,  # [windows, HEADS, T], of the exponentials of each query's scores
    deltas,  # [windows, HEADS, T]
    height,
    width,
    windows,
    run,
    scale,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    SIDE: tl.constexpr,
    SHIFT: tl.constexpr,
    ROWS: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
):
    operand: tl.constexpr = qkv.dtype.element_ty if TENSOR_CORES else tl.float32
    precision: tl.constexpr = "tf32" if TENSOR_CORES else "ieee"
    scale = tl.cast(scale, tl.float32)  # the compiler hands it on in float64
    tokens: tl.constexpr = SIDE * SIDE
    head = tl.program_id(0).to(tl.int64)
    i_k = tl.arange(0, tokens)
    i_q = i_k if tokens == ROWS else tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    if tokens == ROWS:  # otherwise the sums need the registers, and the nearest cache has it
        b_position = position_bias(table, head, i_q[:, None], i_k[None, :], HEADS, SIDE)
    b_q = part_of_bias(qkv_bias, head, 0, HEADS, SIZE, PADDED)
    of_scores = tl.zeros((ROWS, tokens), tl.float32)
    of_queries = tl.zeros((PADDED,), tl.float32)
    of_values = tl.zeros((PADDED,), tl.float32)
    first = tl.program_id(1) * run
    # nothing else is moved out of the loop: it would take registers
    for window in tl.range(first, tl.minimum(first + run, windows), disable_licm=True):
        p_k = places_of(window, i_k, height, width, SIDE, SHIFT)
        p_q = p_k if tokens == ROWS else places_of(window, i_q, height, width, SIDE, SHIFT)
        q = ((load_tile(qkv, p_q, head, 0, 3, HEADS, SIZE, PADDED).to(tl.float32) + b_q) * scale).to(operand)
        k = load_tile(qkv, p_k, head, 1, 3, HEADS, SIZE, PADDED).to(operand)
        if tokens > ROWS:
            b_position = position_bias(table, head, i_q[:, None], i_k[None, :], HEADS, SIDE)
        scores = tl.dot(q, tl.trans(k), input_precision=precision) + b_position
        if SHIFT:
            scores += mask_of(window, i_q[:, None], i_k[None, :], height, width, SIDE, SHIFT)
        most = tl.max(scores, axis=1)
        p = tl.exp(scores - most[:, None])
        total = tl.sum(p, axis=1)
        p *= (1 / total)[:, None]
        g = load_tile(upstream, p_q, head, 0, 1, HEADS, SIZE, PADDED).to(operand)
        of_values += tl.sum(g.to(tl.float32), axis=0)
        if tokens == ROWS:
            dv = tl.dot(tl.trans(p.to(operand)), g, input_precision=precision)
            store_tile(gradient, dv, p_k, head, 2, 3, HEADS, SIZE, PADDED)
        v = load_tile(qkv, p_k, head, 2, 3, HEADS, SIZE, PADDED).to(operand)
        of_p = tl.dot(g, tl.trans(v), input_precision=precision)
        delta = tl.sum(p * of_p, axis=1)
        ds = p * (of_p - delta[:, None])
        of_scores += ds
        dq = tl.dot(ds.to(operand), k, input_precision=precision) * scale
        of_queries += tl.sum(dq, axis=0)
        store_tile(gradient, dq, p_q, head, 0, 3, HEADS, SIZE, PADDED)
        if tokens == ROWS:
            dk = tl.dot(tl.trans(ds.to(operand)), q, input_precision=precision)
            store_tile(gradient, dk, p_k, head, 1, 3, HEADS, SIZE, PADDED)
        else:
            o = (window * HEADS + head) * tokens + i_q
            tl.store(log_sums + o, most + tl.log(total))
            tl.store(deltas + o, delta)
    i_program = tl.program_id(1) * (tokens // ROWS) + tl.program_id(2)
    sums = partial + (i_program * HEADS + head) * (4 * tokens + 2 * PADDED)
    store_window_sums(sums, of_scores, of_queries, of_values, tl.program_id(2) * (ROWS // SIDE), PADDED, SIDE, ROWS)


@triton.jit
def store_window_sums(
    sums,
    of_scores,
    of_queries,
    of_values,
    first_row,
    PADDED: tl.constexpr,
    SIDE: tl.constexpr,
    ROWS: tl.constexpr,
):
    o = tl.arange(0, 2 * SIDE)
    tl.store(sums + o[:, None] * (2 * SIDE) + o[None, :], fold_scores(of_scores, first_row, SIDE, ROWS))
    o = 4 * SIDE * SIDE + tl.arange(0, PADDED)
    tl.store(sums + o, of_queries)
    tl.store(sums + o + PADDED, of_values)


@triton.jit
def fold_scores(of_scores, first_row, SIDE: tl.constexpr, ROWS: tl.constexpr):
    """[ROWS, T] by relative position: [2*SIDE, 2*SIDE], of which the last row and column are 0."""
    high: tl.constexpr = ROWS // SIDE
    by_rows = tl.permute(tl.reshape(of_scores, (high, SIDE, SIDE, SIDE)), (0, 2, 1, 3))  # rows, then columns
    by_rows = tl.reshape(by_rows, (high * SIDE, SIDE * SIDE))
    o = tl.arange(0, 2 * SIDE)
    i = tl.arange(0, SIDE * SIDE)
    across = (i // SIDE - i % SIDE + SIDE - 1)[:, None] == o[None, :]
    i = tl.arange(0, high * SIDE)
    down = o[:, None] == (first_row + i // SIDE - i % SIDE + SIDE - 1)[None, :]
    by_rows = tl.dot(by_rows, across.to(tl.float32), input_precision="ieee")
    return tl.dot(down.to(tl.float32), by_rows, input_precision="ieee")


@triton.jit
def key_gradients_kernel(
    qkv,
    qkv_bias,
    table,
    upstream,
    gradient,
    log_sums,
    deltas,
    height,
    width,
    windows,
    run,
    scale,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    SIDE: tl.constexpr,
    SHIFT: tl.constexpr,
    ROWS: tl.constexpr,
    TENSOR_CORES: tl.constexpr,
):
    operand: tl.constexpr = qkv.dtype.element_ty if TENSOR_CORES else tl.float32
    precision: tl.constexpr = "tf32" if TENSOR_CORES else "ieee"
    scale = tl.cast(scale, tl.float32)  # the compiler hands it on in float64
    tokens: tl.constexpr = SIDE * SIDE
    head = tl.program_id(0).to(tl.int64)
    i_k = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    i_q = tl.arange(0, tokens)
    b_q = part_of_bias(qkv_bias, head, 0, HEADS, SIZE, PADDED)
    first = tl.program_id(1) * run
    for window in tl.range(first, tl.minimum(first + run, windows), disable_licm=True):
        p_k = places_of(window, i_k, height, width, SIDE, SHIFT)
        p_q = places_of(window, i_q, height, width, SIDE, SHIFT)
        q = ((load_tile(qkv, p_q, head, 0, 3, HEADS, SIZE, PADDED).to(tl.float32) + b_q) * scale).to(operand)
        k = load_tile(qkv, p_k, head, 1, 3, HEADS, SIZE, PADDED).to(operand)
        b_position = position_bias(table, head, i_q[None, :], i_k[:, None], HEADS, SIDE)
        scores = tl.dot(k, tl.trans(q), input_precision=precision) + b_position
        if SHIFT:
            scores += mask_of(window, i_q[None, :], i_k[:, None], height, width, SIDE, SHIFT)
        o = (window * HEADS + head) * tokens + i_q
        p = tl.exp(scores - tl.load(log_sums + o)[None, :])
        g = load_tile(upstream, p_q, head, 0, 1, HEADS, SIZE, PADDED).to(operand)
        dv = tl.dot(p.to(operand), g, input_precision=precision)
        store_tile(gradient, dv, p_k, head, 2, 3, HEADS, SIZE, PADDED)
        v = load_tile(qkv, p_k, head, 2, 3, HEADS, SIZE, PADDED).to(operand)
        of_p = tl.dot(v, tl.trans(g), input_precision=precision)
        ds = p * (of_p - tl.load(deltas + o)[None, :])
        dk = tl.dot(ds.to(operand), q, input_precision=precision)
        store_tile(gradient, dk, p_k, head, 1, 3, HEADS, SIZE, PADDED)


@triton.jit
def sum_gradients_kernel(
    partial,
    gradient_of_bias,
    gradient_of_table,
    programs,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
    SIDE: tl.constexpr,
    PROGRAMS: tl.constexpr,
    VALUES: tl.constexpr,
):
    entries: tl.constexpr = 4 * SIDE * SIDE
    head = tl.program_id(0).to(tl.int64)
    i_value = tl.program_id(1) * VALUES + tl.arange(0, VALUES)
    total = tl.zeros((PROGRAMS, VALUES), tl.float32)
    for first in range(0, programs, PROGRAMS):
        i_program = first + tl.arange(0, PROGRAMS)
        o = (i_program[:, None] * HEADS + head) * (entries + 2 * PADDED) + i_value[None, :]
        total += tl.load(partial + o, mask=(i_program < programs)[:, None], other=0.0)
    sums = tl.sum(total, axis=0)
    row, column = i_value // (2 * SIDE), i_value % (2 * SIDE)
    mask = (i_value < entries) & (row < 2 * SIDE - 1) & (column < 2 * SIDE - 1)
    o = (row * (2 * SIDE - 1) + column) * HEADS + head
    tl.store(gradient_of_table + o, sums.to(gradient_of_table.dtype.element_ty), mask=mask)
    part, channel = (i_value - entries) // PADDED * 2, i_value % PADDED
    mask = (i_value >= entries) & (channel < SIZE)
    o = (part * HEADS + head) * SIZE + channel
    tl.store(gradient_of_bias + o, sums.to(gradient_of_bias.dtype.element_ty), mask=mask)
    tl.store(
        gradient_of_bias + o + HEADS * SIZE,
        tl.zeros_like(sums).to(gradient_of_bias.dtype.element_ty),
        mask=mask & (part == 0),
    )


def launch(
    upstream: Tensor, qkv: Tensor, qkv_bias: Tensor, table: Tensor, window: int, shift: int, form: TileForm
) -> tuple[Tensor, Tensor, Tensor]:
    """Run the kernels on checked arguments: the gradients of qkv, qkv_bias and table."""
    samples, height, width, channels = qkv.shape
    heads, tokens = table.shape[1], window**2
    windows = samples * height * width // tokens
    constants = constants_of(channels, heads, window, shift, form)
    grid, run = grid_of(qkv, heads, window, form.rows, PROGRAMS)
    gradient, of_bias, of_table = torch.empty_like(qkv), torch.empty_like(qkv_bias), torch.empty_like(table)
    values = 4 * tokens + 2 * constants["PADDED"]
    partial = qkv.new_empty((grid[1] * grid[2], heads, values), dtype=torch.float32)
    split = form.rows < tokens
    log_sums, deltas = qkv.new_empty((2, windows * split, heads, tokens), dtype=torch.float32)
    numbers = (height, width, windows, run, (channels // 3 // heads) ** -0.5)
    wrap_triton(query_gradients_kernel)[grid](
        qkv, qkv_bias, table, upstream, gradient, partial, log_sums, deltas, *numbers, **constants
    )
    if split:
        wrap_triton(key_gradients_kernel)[grid](
            qkv, qkv_bias, table, upstream, gradient, log_sums, deltas, *numbers, **constants
        )
    wrap_triton(sum_gradients_kernel)[(heads, triton.cdiv(values, SUMMED_VALUES))](
        partial,
        of_bias,
        of_table,
        grid[1] * grid[2],
        HEADS=heads,
        SIZE=constants["SIZE"],
        PADDED=constants["PADDED"],
        SIDE=window,
        PROGRAMS=SUMMED_PROGRAMS,
        VALUES=SUMMED_VALUES,
        num_warps=4,
    )
    return gradient, of_bias, of_table
