"""Whether a training step counts, in Triton: two launches, and all that follows from the answer.

    gradients   float32 [M], any M         loss   float32 []         state   `StepState`, changed in place
    skip   bool []         inverse_scale   float32 []

Launches: (1) does a block hold a gradient that is not finite; (2) one program gathers the answers, decides, and writes
both results and the whole state.

Reference: `decision.decide_step`, whose every bit they give.
Traffic: 4 bytes per gradient, 16 bytes a thread where the address is a multiple of 16. No atomics.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_fast_kernels.decision import StepRules, StepState

SEARCHED = 8192  # gradients of one program: 8 loads of 16 bytes a thread, all under way at once
SEARCH_WARPS = 8
GATHERED = 1024  # answers that the deciding program reads at a time


@triton.jit
def find_nonfinite_kernel(gradients, found, numel, BLOCK: tl.constexpr):
    i_block = tl.program_id(0).to(tl.int64)
    start = i_block * BLOCK
    o = start + tl.arange(0, BLOCK)
    # A mask over any number would cost the 16-byte accesses: whole blocks go without.
    if start + BLOCK <= numel:  # noqa: SIM108 - blocks have no conditional expression in Triton
        b_gradient = tl.load(gradients + o)
    else:
        b_gradient = tl.load(gradients + o, mask=o < numel, other=0.0)
    bad = 1 - (tl.abs(b_gradient) < float("inf")).to(tl.int32)  # NaN compares false
    tl.store(found + i_block, tl.max(bad, axis=0))


@triton.jit
def decide_kernel(
    found,
    blocks,
    loss,
    last_accepted,
    skipped,
    skipped_in_row,
    scale,
    good_steps,
    loss_sum,
    accepted,
    decided,
    losses,
    skips,
    skip,
    inverse_scale,
    places,
    growth_interval,
    spike_factor,
    SPIKES: tl.constexpr,
    SCALES: tl.constexpr,
    GATHERED: tl.constexpr,
):
    # All is read before the reduction, where the program's threads wait for each other, and written after it.
    b_loss = tl.load(loss)
    b_last, b_scale, b_good = tl.load(last_accepted), tl.load(scale), tl.load(good_steps)
    b_skipped, b_in_row = tl.load(skipped), tl.load(skipped_in_row)
    b_sum, b_accepted, b_decided = tl.load(loss_sum), tl.load(accepted), tl.load(decided)
    bad = tl.zeros((GATHERED,), tl.int32)
    for first in range(0, blocks, GATHERED):
        o = first + tl.arange(0, GATHERED)
        bad = tl.maximum(bad, tl.load(found + o, mask=o < blocks, other=0))
    b_skip = tl.maximum(tl.max(bad, axis=0), 1 - (tl.abs(b_loss) < float("inf")).to(tl.int32))
    overflow = b_skip
    if SPIKES:
        spike = (b_loss > spike_factor * b_last).to(tl.int32)
        b_skip = tl.maximum(b_skip, spike)
        overflow = b_skip * (1 - spike)
    keep = 1 - b_skip
    tl.store(skip, b_skip)
    tl.store(inverse_scale, tl.div_rn(1.0, b_scale))
    if SCALES:
        good = (b_good + 1) * (1 - overflow)
        grow = good == growth_interval
        tl.store(scale, b_scale * tl.where(overflow > 0, 0.5, tl.where(grow, 2.0, 1.0)))
        tl.store(good_steps, tl.where(grow, 0, good))
    tl.store(last_accepted, tl.where(keep > 0, b_loss, b_last))
    tl.store(skipped, b_skipped + b_skip)
    tl.store(skipped_in_row, (b_in_row + 1) * b_skip)
    tl.store(loss_sum, b_sum + tl.where(keep > 0, b_loss, 0.0).to(tl.float64))
    tl.store(accepted, b_accepted + keep)
    tl.store(losses + b_decided % places, b_loss)
    tl.store(skips + b_decided % places, b_skip)
    tl.store(decided, b_decided + 1)


def launch(gradients: Tensor, loss: Tensor, state: StepState, rules: StepRules) -> tuple[Tensor, Tensor]:
    """Run both launches on checked arguments."""
    numel = gradients.numel()
    blocks = triton.cdiv(numel, SEARCHED)
    found = torch.empty(blocks, dtype=torch.int32, device=loss.device)
    skip = torch.empty((), dtype=torch.bool, device=loss.device)
    inverse_scale = torch.empty((), dtype=torch.float32, device=loss.device)
    find_nonfinite_kernel[(blocks,)](gradients, found, numel, BLOCK=SEARCHED, num_warps=SEARCH_WARPS)
    decide_kernel[(1,)](
        found, blocks, loss, *state, skip, inverse_scale, len(state.losses), rules.growth_interval, rules.spike_factor,
        SPIKES=rules.spike_factor > 0, SCALES=rules.scales, GATHERED=GATHERED, num_warps=4,
    )  # fmt: skip
    return skip, inverse_scale
