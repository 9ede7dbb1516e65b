"""What is equal on another kind of machine, where no bits are: the weights, by the way that they went, and the rows."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

WEIGHTS = 0.1
"""How far apart the weights may end, as a share of the way that they went (both as 2-norms over all of them)."""
LOSS = 0.01
"""Of a loss, as a share of it."""
PSNR, SSIM = 0.05, 0.002
"""Of a validation's scores: dB, and 1."""
STATED = {"weights": WEIGHTS, "loss": LOSS, "psnr_y": PSNR, "ssim_y": SSIM}
"""By what they hold for."""

Weights = Mapping[str, Tensor]
Reports = Sequence[Mapping[str, Any]]


def beyond_tolerance(
    start: Mapping[str, Any], made: Mapping[str, Any], kept: Mapping[str, Any], made_rows: Reports, rows: Reports
) -> tuple[float, str]:
    """How far apart two courses from the same weights ended, and what of that is too much, in words.

    Args:
        start: the state that both began with.
        made: the state that one ended with.
        kept: that of the other.
        made_rows: what the one reported.
        rows: what the other did.

    Returns:
        The distance of their weights as a share of the way; and nothing, where all is within `STATED`.
    """
    distance = max(
        share_of_the_way(start[part], made[part], kept[part]) for part in ("network", "averaged") if part in kept
    )
    if not distance <= WEIGHTS:
        return distance, f"the weights end {distance:.3g} of their way from those that the training makes"
    if [row["step"] for row in made_rows] != [row["step"] for row in rows]:
        return distance, "metrics.jsonl has rows of other steps"
    for ours, theirs in zip(made_rows, rows, strict=True):
        for key, value in theirs.items():
            if not within(key, ours.get(key), value):
                return distance, f"metrics.jsonl: {key} of step {theirs['step']} is {value}, repeated {ours.get(key)}"
    return distance, ""


def share_of_the_way(start: Weights, made: Weights, kept: Weights) -> float:
    """How far apart two sets of weights are, in units of the way from a third one to the second."""
    way, apart = norm_of_difference(kept, start), norm_of_difference(made, kept)
    return apart / way if way else math.inf if apart else 0.0


def norm_of_difference(first: Weights, second: Weights) -> float:
    """2-norm over all weights of floating point."""
    parts = [
        (first[key].double() - second[key].double()).norm()
        for key in first
        if first[key].is_floating_point() and not key.endswith("mask")
    ]
    return float(torch.stack(parts).norm())


def within(key: str, made: Any, kept: Any) -> bool:
    """Whether a value of a row is what the other one is, up to rounding."""
    if key == "skipped" or made is None or kept is None:
        return key == "skipped" or made == kept
    measure = key.partition("/")[0]
    allowed = {"loss": LOSS * abs(kept), "psnr_y": PSNR, "ssim_y": SSIM}.get(measure, 1e-6 * abs(kept))
    return bool(abs(made - kept) <= allowed)
