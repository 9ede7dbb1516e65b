"""Accesses to the blocks of an optimizer's tensors, in Triton: whole ones, and the masked one at a tensor's end."""

import triton
import triton.language as tl


@triton.jit
def load_block(pointer, o, numel, MASKED: tl.constexpr):
    # A mask over a number that only the device knows would cost the 16-byte accesses: whole blocks go without.
    if MASKED:
        return tl.load(pointer + o, mask=o < numel, other=0.0)
    else:  # Triton compiles both arms
        return tl.load(pointer + o)


@triton.jit
def store_block(pointer, o, value, numel, MASKED: tl.constexpr):
    if MASKED:
        tl.store(pointer + o, value, mask=o < numel)
    else:
        tl.store(pointer + o, value)
