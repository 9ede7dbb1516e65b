"""A walk from a point against its gradient; `landscape.py` walks from points of a training."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

LossAndGradient = Callable[[Tensor], tuple[float, Tensor]]
"""Maps a point, floating [P], to the loss and its gradient, floating [P]."""
FIGURES = ("lowest_loss", "highest_loss", "gradient_difference", "smoothness")


@dataclass(frozen=True)
class Measures:
    """Loss and gradient along the walk.

    Attributes:
        loss: at the start.
        gradient_norm: l2 norm at the start.
        distances: from the start, [K]; the lengths, as the weights' precision rounds them.
        losses: at these distances, [K].
        differences: l2 norm of the gradient there minus that at the start, [K].
    """

    loss: float
    gradient_norm: float
    distances: Sequence[float]
    losses: Sequence[float]
    differences: Sequence[float]

    @property
    def figures(self) -> dict[str, float]:
        """By the names of `FIGURES`: range of the losses, largest gradient difference, largest smoothness."""
        slopes = [difference / distance for difference, distance in zip(self.differences, self.distances, strict=True)]
        values = (min(self.losses), max(self.losses), max(self.differences), max(slopes))
        return dict(zip(FIGURES, values, strict=True))


def measure(loss_and_gradient: LossAndGradient, point: Tensor, lengths: Sequence[float]) -> Measures:
    """Walk from a point against its gradient.

    Args:
        loss_and_gradient: any differentiable function.
        point: floating [P], in whose precision the walk is; norms are float64.
        lengths: l2 distances from the point, positive.

    Raises:
        ValueError: the gradient is zero or not finite, so has no direction; or a length is too short.
    """
    loss, gradient = loss_and_gradient(point)
    norm = norm_of(gradient)
    if not 0 < norm < math.inf:
        raise ValueError(f"the gradient's norm is {norm}; expected a finite one above zero, to have a direction")
    distances, losses, differences = [], [], []
    for length in lengths:
        there = point - gradient * (length / norm)
        value, other = loss_and_gradient(there)
        distances.append(norm_of(there - point))
        losses.append(value)
        differences.append(norm_of(other - gradient))
    if not all(distances):
        raise ValueError(f"a length of {min(lengths)} is lost in the rounding of the weights; take longer ones")
    return Measures(loss, norm, distances, losses, differences)


def norm_of(vector: Tensor) -> float:
    """The l2 norm, in float64."""
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))
