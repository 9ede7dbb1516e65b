"""A row of the tables of ops, and what rows are made with."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Outputs = Sequence[Tensor]
Bound = Callable[[], Outputs]
CPU, GPU = "cpu", "cuda"
ROUNDED = 1e-5  # of the norm of what is right: sums of float32 in another order


@dataclass(frozen=True)
class OpCase:
    """An op, and what it has to give."""

    name: str
    inputs: Callable[[int], list[Tensor]]
    """Some samples, by their number."""
    op: Callable[..., Bound]
    """From the inputs on the device to what computes the results; may change the inputs."""
    reference: Callable[..., Bound]
    """The same on the CPU, in plain torch."""
    tolerance: float = 0.0
    """Of the difference's norm, relative to the reference's; 0: every byte is the same."""
    devices: tuple[str, ...] = (GPU,)
    compiles: bool = False
    """Whether it needs a C++ compiler on a CPU."""
    timed: bool = True
    """Whether its bytes against a copy say anything."""


def with_gradients(function: Callable[..., Tensor], *leaves: Tensor) -> Bound:
    """What a function gives, and the gradients of the mean of its squares, or of itself if it is one number."""
    wanted = [leaf.detach().requires_grad_() for leaf in leaves]

    def run() -> Outputs:
        result = function(*wanted)
        scalar = result.square().mean() if result.ndim else result
        return [result.detach(), *torch.autograd.grad(scalar, wanted)]

    return run
