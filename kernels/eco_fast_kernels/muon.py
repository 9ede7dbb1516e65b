"""Muon in plain torch: the definition of `muon_step`, and the path that CPU tensors take.

Filters and matrices of a network's body move along their orthogonalised momentum, all other weights as AdamW's do.

Sources: K. Jordan et al., "Muon: An optimizer for hidden layers in neural networks", 2024; Adam: Kingma and Ba, ICLR
2015, with the decoupled weight decay of Loshchilov and Hutter, ICLR 2019.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

MOMENTUM = 0.95
ITERATIONS = 5
QUINTIC = (3.4445, -4.7750, 2.0315)
"""Of x, x**3 and x**5: five rounds bring singular values of 0.002 to 1 between 0.68 and 1.21."""
SMALLEST_NORM = 1e-7
"""What a matrix is divided by at least."""
AT_ONCE = 2**18
"""Values that a CPU orthogonalises at a time, about: they and what is made of them stay in its cache."""


class Matrices(NamedTuple):
    """Matrices of one shape that lie at equal distances in a buffer, each row by row.

    A filter [out, in, k, k] is a matrix of `out` rows in whatever order its memory has the rest: an order of the
    columns changes nothing but the order of the columns.
    """

    offset: int
    """Where the first one begins."""
    pitch: int
    """From one to the next."""
    number: int
    rows: int
    columns: int

    @property
    def growth(self) -> float:
        """The factor on an orthogonalised update: a tall one is made larger."""
        return math.sqrt(max(1.0, self.rows / self.columns))

    def of(self, buffer: Tensor) -> Tensor:
        """The view [number, rows, columns] of a buffer."""
        shape, strides = (self.number, self.rows, self.columns), (self.pitch, self.columns, 1)
        return buffer.as_strided(shape, strides, buffer.storage_offset() + self.offset)


class MuonTensors(NamedTuple):
    """What a step reads and, but for the gradients, changes in place: float32, contiguous, on one device."""

    weights: Tensor
    """[M]: the K values of the matrices first, then those of the other weights; what lies between them is 0."""
    gradients: Tensor
    """[M], likewise."""
    average: Tensor | None
    """[M]: running average of the weights; None for none."""
    momentum: Tensor
    """[K]"""
    exp_avg: Tensor
    """[M - K]: Adam's first moment."""
    exp_avg_sq: Tensor
    """[M - K]: Adam's second moment."""
    corrections: Tensor
    """[2]: what the moments of a constant 1 would be by now; dividing by them corrects Adam's bias."""


class MuonOptions(NamedTuple):
    """What stays the same in all steps."""

    adam_factor: float = 1.0
    """Adam's learning rate over Muon's."""
    beta1: float = 0.9
    """Decay of Adam's first moment."""
    beta2: float = 0.999
    """Decay of Adam's second moment."""
    epsilon: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.0
    """Of all weights, decoupled from momentum and moments."""
    clip_value: float | None = None
    """Bound of each gradient element, or None."""
    average_decay: float = 0.999
    """Decay of the running average of the weights."""


@torch.no_grad()
def muon_step(
    tensors: MuonTensors,
    matrices: Sequence[Matrices],
    options: MuonOptions,
    learning_rate: Tensor,
    skip: Tensor,
    inverse_scale: Tensor,
) -> None:
    """One update in place; with g = gradient * inverse_scale, clipped element by element, per matrix:

        m = 0.95*m + g
        p -= learning_rate * (sqrt(max(1, rows / columns)) * orthogonalise(g + 0.95*m) + weight_decay*p)

    and per other weight, where the corrections begin at 0:

        c1 = b1*c1 + (1-b1),  c2 = b2*c2 + (1-b2),  m = b1*m + (1-b1)*g,  v = b2*v + (1-b2)*g*g
        p -= learning_rate * adam_factor * (m/c1 / (sqrt(v/c2) + epsilon) + weight_decay*p)
        average = average_decay * average + (1 - average_decay) * p        (of all weights)

    On any device, without a read by the host.

    Args:
        tensors: see there.
        matrices: how the first K values lie, by shapes; see `Matrices`.
        options: the constants of the formula.
        learning_rate: float32 [].
        skip: bool []; where true every bit stays as it is, whatever the gradients hold.
        inverse_scale: float32 [], undoes a gradient scaler's factor.
    """  # noqa: D415 - the formula is the summary
    size = tensors.momentum.numel()
    gradients = tensors.gradients * inverse_scale
    if options.clip_value is not None:
        gradients.clamp_(-options.clip_value, options.clip_value)
    of_matrices, of_others = gradients[:size], gradients[size:]

    def change(kept: Tensor, new: Tensor) -> None:
        torch.where(skip, kept, new, out=kept)

    def move(weights: Tensor, update: Tensor, rate: Tensor) -> None:
        if options.weight_decay:
            update.add_(weights, alpha=options.weight_decay)
        change(weights, weights - update.mul_(rate))

    momentum = torch.add(of_matrices, tensors.momentum, alpha=MOMENTUM)
    update = torch.add(of_matrices, momentum, alpha=MOMENTUM)
    change(tensors.momentum, momentum)
    for one in matrices:
        for some in torch.split(one.of(update), max(1, AT_ONCE // (one.rows * one.columns))):
            some.copy_(orthogonalise(some).mul_(one.growth))
    move(tensors.weights[:size], update, learning_rate)
    move(tensors.weights[size:], _adam(tensors, of_others, options, change), learning_rate * options.adam_factor)
    if tensors.average is not None:
        change(tensors.average, tensors.average.lerp(tensors.weights, 1 - options.average_decay))


def _adam(
    tensors: MuonTensors, gradients: Tensor, options: MuonOptions, change: Callable[[Tensor, Tensor], None]
) -> Tensor:
    """Adam's update of the weights that are no matrices, after its moments."""
    beta1, beta2 = options.beta1, options.beta2
    first, second = tensors.corrections.unbind()
    change(first, first * beta1 + (1 - beta1))
    change(second, second * beta2 + (1 - beta2))
    change(tensors.exp_avg, tensors.exp_avg * beta1 + gradients * (1 - beta1))
    change(tensors.exp_avg_sq, tensors.exp_avg_sq * beta2 + gradients.square() * (1 - beta2))
    root = (tensors.exp_avg_sq / second).sqrt_().add_(options.epsilon)
    return (tensors.exp_avg / first).div_(root)


def orthogonalise(matrices: Tensor) -> Tensor:
    """The nearest matrices whose singular values are about 1, by five rounds of Newton-Schulz:

        x = matrix / max(|matrix|, 1e-7)
        five times: a = x x',  x = 3.4445*x + (-4.7750*a + 2.0315*a a) x

    with the Frobenius norm; a tall matrix is transposed meanwhile, so that x x' is as small as it can be.

    Args:
        matrices: floating point [N, rows, columns].

    Returns:
        The same shape and dtype.
    """  # noqa: D415 - the formula is the summary
    tall = matrices.shape[1] > matrices.shape[2]
    x = matrices.mT if tall else matrices
    x = x / torch.linalg.vector_norm(x, dim=(1, 2), keepdim=True).clamp(min=SMALLEST_NORM)
    linear, cubic, quintic = QUINTIC
    for _ in range(ITERATIONS):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=quintic)
        x = torch.baddbmm(x, polynomial, x, beta=linear)
    return x.mT if tall else x
