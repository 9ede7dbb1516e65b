"""Whether a training step counts, in plain torch: the definition of `decide_step`, and what it remembers.

A step is skipped if its loss or a gradient is not finite, or if its loss exceeds `spike_factor` times the last accepted
one: the rule of the authors of ECO. The factor on 16-bit gradients follows torch's gradient scaler: halved after an
overflow, doubled after `growth_interval` steps in a row without.
"""

from typing import NamedTuple, Self

import torch
from torch import Tensor

FIRST_ACCEPTED = 100.0  # the loss, in grey levels, that the authors measure the first step by


class StepState(NamedTuple):
    """What one step leaves to the next; all on one device, changed in place."""

    last_accepted: Tensor
    """float32 []: the last accepted loss."""
    skipped: Tensor
    """int64 []: steps skipped so far."""
    skipped_in_row: Tensor
    """int64 []: of them the latest, without an accepted one between."""
    scale: Tensor
    """float32 []: the factor that the gradients carry; stays as it is unless `StepRules.scales`."""
    good_steps: Tensor
    """int64 []: steps without overflow since the factor changed."""
    loss_sum: Tensor
    """float64 []: of the accepted losses since the last report."""
    accepted: Tensor
    """int64 []: how many they are."""
    decided: Tensor
    """int64 []: steps decided so far; the next one's place in `losses` and `skips` is `decided` % L."""
    losses: Tensor
    """float32 [L]: the loss of each of the last L steps."""
    skips: Tensor
    """bool [L]: whether it was skipped."""

    @classmethod
    def at_start(cls, device: str | torch.device, places: int, scale: float = 1.0) -> Self:
        """Before the first step, with a log of `places` steps and `scale` on the gradients."""

        def zeros(dtype: torch.dtype, *shape: int) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        return cls(
            last_accepted=zeros(torch.float32).fill_(FIRST_ACCEPTED),
            skipped=zeros(torch.int64),
            skipped_in_row=zeros(torch.int64),
            scale=zeros(torch.float32).fill_(scale),
            good_steps=zeros(torch.int64),
            loss_sum=zeros(torch.float64),
            accepted=zeros(torch.int64),
            decided=zeros(torch.int64),
            losses=zeros(torch.float32, places),
            skips=zeros(torch.bool, places),
        )


class StepRules(NamedTuple):
    """What stays the same in all steps."""

    spike_factor: float = 0.0
    """A loss above so many times the last accepted one is skipped; 0 for never."""
    scales: bool = False
    """Whether the factor on the gradients changes."""
    growth_interval: int = 2000
    """Steps without overflow after which the factor is doubled."""


@torch.no_grad()
def decide_step(gradients: Tensor, loss: Tensor, state: StepState, rules: StepRules) -> tuple[Tensor, Tensor]:
    """Skip the step or accept it, and note in `state` what came of it.

    A loss that is a spike says nothing about 16-bit gradients, so it leaves the factor alone and counts as a step
    without overflow.

    Args:
        gradients: float32 [M], M >= 1: all of the network's, with whatever finite padding lies between them.
        loss: float32 [], of this step.
        state: changed in place.
        rules: see there.

    Returns:
        Whether to skip the step, bool [], and 1 / the factor that these gradients carry, float32 [].
    """
    inverse_scale = state.scale.reciprocal()
    low, high = gradients.aminmax()  # NaN if one is; unlike `isfinite` it makes no arrays
    skip = ~(loss.isfinite() & low.isfinite() & high.isfinite())
    overflow = skip
    if rules.spike_factor:
        spike = loss > rules.spike_factor * state.last_accepted
        skip, overflow = skip | spike, skip & ~spike
    if rules.scales:
        good = torch.where(overflow, 0, state.good_steps + 1)
        grow = good == rules.growth_interval
        state.scale.mul_(torch.where(overflow, 0.5, torch.where(grow, 2.0, 1.0)))
        state.good_steps.copy_(torch.where(grow, 0, good))
    state.skipped.add_(skip)
    state.skipped_in_row.add_(1).mul_(skip)
    state.last_accepted.copy_(torch.where(skip, state.last_accepted, loss))
    state.loss_sum.add_(torch.where(skip, 0.0, loss))
    state.accepted.add_(~skip)
    place = (state.decided % len(state.losses)).view(1)
    state.losses.index_copy_(0, place, loss.view(1))
    state.skips.index_copy_(0, place, skip.view(1))
    state.decided.add_(1)
    return skip, inverse_scale
