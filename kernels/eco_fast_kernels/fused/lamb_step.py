"""Multi-tensor LAMB, in Triton: four launches for any number of tensors.

Per tensor p with gradient g, after g = clip(g * inverse_scale, +-clip_value):

    m = b1*m + (1-b1)*g,  v = b2*v + (1-b2)*g*g,  u = m / (sqrt(v) + epsilon) + weight_decay*p
    p -= learning_rate * min(|p|, norm_clamp) / |u| * u       (ratio 1 where either norm is 0)

    parameters, gradients, exp_avg, exp_avg_sq, average    float32, dense, of any shape; all of a tensor's in one layout
    learning_rate, inverse_scale   float32 []          skip   bool []          step_count   int64 []

Launches: (1) does a chunk hold a gradient that is not finite; (2) one program gathers the answers into `skip` and
counts the step; (3) moments, and each chunk's sums of p**2 and u**2; (4) the chunk sums of a tensor give its trust
ratio; weights, and their running average. Where `skip` is set, (3) and (4) change nothing.

Source: You et al., ICLR 2020, in the form of `torch_optimizer.Lamb` with the weight norm clamped, as the authors of ECO
train.  Reference: `reference.lamb_step`.
Traffic: 44 bytes per weight (4 + 24 + 16), 52 with the average. 28 (36) are compulsory; the rest is read again after
the decision to skip, and after the norms. Sums are made in a fixed order, without atomics. All arrays are read and
written 16 bytes a thread where their addresses allow it.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_fast_kernels.reference import LambOptions

CHUNK = 32768  # weights of one program
BLOCK = 1024
TABLE_COLUMNS = tl.constexpr(6)  # of the table: four addresses, the average's, the number of weights
TABLE_ALIGNMENT = 16  # bytes


@triton.jit
def _address(table, i_tensor, column: tl.constexpr, ALIGNED: tl.constexpr):
    pointer = tl.load(table + i_tensor * TABLE_COLUMNS + column).to(tl.pointer_type(tl.float32))
    return tl.multiple_of(pointer, 16) if ALIGNED else pointer


@triton.jit
def _chunk(table, chunks, i_chunk, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    """A chunk's tensor and place in it; its offsets, whole blocks and whether more follows; the tensor's size."""
    i_tensor = tl.load(chunks + i_chunk * 2).to(tl.int64)
    i_part = tl.load(chunks + i_chunk * 2 + 1)
    start = i_part.to(tl.int64) * CHUNK
    numel = tl.load(table + i_tensor * TABLE_COLUMNS + 5)
    length = tl.minimum(CHUNK, numel - start)
    whole = length // BLOCK
    return i_tensor, i_part, start + tl.arange(0, BLOCK), whole, whole * BLOCK < length, numel


@triton.jit
def _load(pointer, o, numel, MASKED: tl.constexpr):
    # A mask over a number that only the device knows would cost the 16-byte accesses: whole blocks go without.
    if MASKED:
        return tl.load(pointer + o, mask=o < numel, other=0.0)
    else:  # Triton compiles both arms
        return tl.load(pointer + o)


@triton.jit
def _store(pointer, o, value, numel, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointer + o, value, mask=o < numel)
    else:
        tl.store(pointer + o, value)


@triton.jit
def _update(p, m, v, epsilon, weight_decay):
    return tl.div_rn(m, tl.sqrt_rn(v) + epsilon) + weight_decay * p


@triton.jit
def _count_nonfinite(gradient, o, numel, MASKED: tl.constexpr):
    b_gradient = _load(gradient, o, numel, MASKED)
    return 1 - (tl.abs(b_gradient) < float("inf")).to(tl.int32)  # NaN compares false


@triton.jit
def find_nonfinite_kernel(table, chunks, bad, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    i_chunk = tl.program_id(0)
    i_tensor, _, o, whole, more, numel = _chunk(table, chunks, i_chunk, CHUNK, BLOCK)
    gradient = _address(table, i_tensor, 1, ALIGNED)
    count = tl.zeros((BLOCK,), tl.int32)
    for index in range(whole):
        count += _count_nonfinite(gradient, o + index * BLOCK, numel, False)
    if more:
        count += _count_nonfinite(gradient, o + whole * BLOCK, numel, True)
    tl.store(bad + i_chunk, tl.sum(count, axis=0))


@triton.jit
def decide_skip_kernel(bad, skip, step_count, count, BLOCK: tl.constexpr):
    total = tl.zeros((BLOCK,), tl.int32)
    for first in range(0, count, BLOCK):
        o = first + tl.arange(0, BLOCK)
        total += (tl.load(bad + o, mask=o < count, other=0) > 0).to(tl.int32)
    skipped = ((tl.load(skip) != 0) | (tl.sum(total, axis=0) > 0)).to(tl.int32)
    tl.store(skip, skipped.to(tl.uint8))
    tl.store(step_count, tl.load(step_count) + (1 - skipped))


@triton.jit
def _moments(
    table,
    i_tensor,
    o,
    numel,
    factor,
    beta1,
    beta2,
    one_minus_beta1,
    one_minus_beta2,
    epsilon,
    weight_decay,
    clip_value,
    CLIP: tl.constexpr,
    ALIGNED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Update m and v of one block; returns p**2 and u**2."""
    p_exp_avg = _address(table, i_tensor, 2, ALIGNED)
    p_exp_avg_sq = _address(table, i_tensor, 3, ALIGNED)
    b_gradient = _load(_address(table, i_tensor, 1, ALIGNED), o, numel, MASKED) * factor
    if CLIP:
        b_gradient = tl.minimum(tl.maximum(b_gradient, -clip_value), clip_value)
    b_parameter = _load(_address(table, i_tensor, 0, ALIGNED), o, numel, MASKED)
    b_m = _load(p_exp_avg, o, numel, MASKED) * beta1 + b_gradient * one_minus_beta1
    b_v = _load(p_exp_avg_sq, o, numel, MASKED) * beta2 + b_gradient * b_gradient * one_minus_beta2
    _store(p_exp_avg, o, b_m, numel, MASKED)
    _store(p_exp_avg_sq, o, b_v, numel, MASKED)
    b_update = _update(b_parameter, b_m, b_v, epsilon, weight_decay)
    return b_parameter * b_parameter, b_update * b_update


@triton.jit
def moments_kernel(
    table,
    chunks,
    sums,
    skip,
    inverse_scale,
    beta1,
    beta2,
    one_minus_beta1,
    one_minus_beta2,
    epsilon,
    weight_decay,
    clip_value,
    CLIP: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_chunk = tl.program_id(0)
    if tl.load(skip) == 0:
        i_tensor, _, o, whole, more, numel = _chunk(table, chunks, i_chunk, CHUNK, BLOCK)
        factor = tl.load(inverse_scale)
        parameter_sum = tl.zeros((BLOCK,), tl.float32)
        update_sum = tl.zeros((BLOCK,), tl.float32)
        for index in range(whole):
            b_parameter, b_update = _moments(
                table, i_tensor, o + index * BLOCK, numel, factor, beta1, beta2, one_minus_beta1, one_minus_beta2,
                epsilon, weight_decay, clip_value, CLIP, ALIGNED, False,
            )  # fmt: skip
            parameter_sum += b_parameter
            update_sum += b_update
        if more:
            b_parameter, b_update = _moments(
                table, i_tensor, o + whole * BLOCK, numel, factor, beta1, beta2, one_minus_beta1, one_minus_beta2,
                epsilon, weight_decay, clip_value, CLIP, ALIGNED, True,
            )  # fmt: skip
            parameter_sum += b_parameter
            update_sum += b_update
        tl.store(sums + i_chunk * 2, tl.sum(parameter_sum, axis=0))
        tl.store(sums + i_chunk * 2 + 1, tl.sum(update_sum, axis=0))


@triton.jit
def _trust_ratio(sums, i_first, numel, norm_clamp, CHUNK: tl.constexpr):
    """A tensor's trust ratio, from the sums of its chunks."""
    parts = tl.cdiv(numel, CHUNK)
    parameter_sum = tl.zeros((128,), tl.float64)
    update_sum = tl.zeros((128,), tl.float64)
    for first in range(0, parts, 128):
        o = first + tl.arange(0, 128)
        p_sums = sums + (i_first + o) * 2
        parameter_sum += tl.load(p_sums, mask=o < parts, other=0.0).to(tl.float64)
        update_sum += tl.load(p_sums + 1, mask=o < parts, other=0.0).to(tl.float64)
    weight_norm = tl.minimum(tl.sqrt_rn(tl.sum(parameter_sum, axis=0).to(tl.float32)), norm_clamp)
    update_norm = tl.sqrt_rn(tl.sum(update_sum, axis=0).to(tl.float32))
    positive = (weight_norm > 0) & (update_norm > 0)
    return tl.where(positive, tl.div_rn(weight_norm, tl.where(positive, update_norm, 1.0)), 1.0)


@triton.jit
def _move(
    table,
    i_tensor,
    o,
    numel,
    rate,
    epsilon,
    weight_decay,
    one_minus_decay,
    AVERAGE: tl.constexpr,
    ALIGNED: tl.constexpr,
    MASKED: tl.constexpr,
):
    """Update the weights, and their average, of one block."""
    p_parameter = _address(table, i_tensor, 0, ALIGNED)
    b_parameter = _load(p_parameter, o, numel, MASKED)
    b_m = _load(_address(table, i_tensor, 2, ALIGNED), o, numel, MASKED)
    b_v = _load(_address(table, i_tensor, 3, ALIGNED), o, numel, MASKED)
    b_parameter -= rate * _update(b_parameter, b_m, b_v, epsilon, weight_decay)
    _store(p_parameter, o, b_parameter, numel, MASKED)
    if AVERAGE:
        p_average = _address(table, i_tensor, 4, ALIGNED)
        b_average = _load(p_average, o, numel, MASKED)
        _store(p_average, o, b_average + one_minus_decay * (b_parameter - b_average), numel, MASKED)


@triton.jit
def update_kernel(
    table,
    chunks,
    sums,
    skip,
    learning_rate,
    epsilon,
    weight_decay,
    norm_clamp,
    one_minus_decay,
    AVERAGE: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    i_chunk = tl.program_id(0)
    if tl.load(skip) == 0:
        i_tensor, i_part, o, whole, more, numel = _chunk(table, chunks, i_chunk, CHUNK, BLOCK)
        # A tensor's chunks follow one another.
        rate = tl.load(learning_rate) * _trust_ratio(sums, i_chunk - i_part, numel, norm_clamp, CHUNK)
        for index in range(whole):
            _move(
                table, i_tensor, o + index * BLOCK, numel, rate, epsilon, weight_decay, one_minus_decay,
                AVERAGE, ALIGNED, False,
            )  # fmt: skip
        if more:
            _move(
                table, i_tensor, o + whole * BLOCK, numel, rate, epsilon, weight_decay, one_minus_decay,
                AVERAGE, ALIGNED, True,
            )  # fmt: skip


def launch(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    average: Sequence[Tensor],
    *,
    options: LambOptions,
    learning_rate: Tensor,
    skip: Tensor,
    step_count: Tensor,
    inverse_scale: Tensor,
) -> None:
    """Run the four launches on checked arguments; `average` may be empty."""
    device = skip.device
    columns = [parameters, gradients, exp_avg, exp_avg_sq, average or parameters]
    addresses = [[tensor.data_ptr() for tensor in column] for column in columns]
    sizes = [tensor.numel() for tensor in parameters]
    aligned = all(address % TABLE_ALIGNMENT == 0 for column in addresses for address in column)
    # One small copy to the device, from the host's side of things that the host knows: nothing is read back.
    table = torch.tensor([*addresses, sizes], dtype=torch.int64).T.contiguous().to(device, non_blocking=True)
    owners = [(index, part) for index, size in enumerate(sizes) for part in range(triton.cdiv(size, CHUNK))]
    chunks = torch.tensor(owners, dtype=torch.int32).to(device, non_blocking=True)
    grid = (len(owners),)
    bad = torch.empty(len(owners), dtype=torch.int32, device=device)
    sums = torch.empty((len(owners), 2), dtype=torch.float32, device=device)
    sizes_of = {"ALIGNED": aligned, "CHUNK": CHUNK, "BLOCK": BLOCK, "num_warps": 4}
    flag = skip.view(torch.uint8)
    find_nonfinite_kernel[grid](table, chunks, bad, **sizes_of)
    decide_skip_kernel[(1,)](bad, flag, step_count, len(owners), BLOCK=BLOCK, num_warps=4)
    beta1, beta2, epsilon, weight_decay, norm_clamp, clip_value, average_decay = options
    moments_kernel[grid](
        table, chunks, sums, flag, inverse_scale, beta1, beta2, 1 - beta1, 1 - beta2, epsilon, weight_decay,
        clip_value or 0.0, CLIP=clip_value is not None, **sizes_of,
    )  # fmt: skip
    update_kernel[grid](
        table, chunks, sums, flag, learning_rate, epsilon, weight_decay, norm_clamp, 1 - average_decay,
        AVERAGE=bool(average), **sizes_of,
    )  # fmt: skip
