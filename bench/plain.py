"""The plain ways that benchmarks compare with, and the shapes they are measured on."""

from collections.abc import Sequence

import torch
from torch import Tensor


def rcan_shapes() -> list[tuple[int, ...]]:
    """RCAN's trainable tensors at x2: 10 groups of 20 blocks, 64 features, reduction 16; 15 444 643 weights."""
    conv: list[tuple[int, ...]] = [(64, 64, 3, 3), (64,)]
    attention: list[tuple[int, ...]] = [(4, 64, 1, 1), (4,), (64, 4, 1, 1), (64,)]
    body = ((conv * 2 + attention) * 20 + conv) * 10 + conv
    return [(64, 3, 3, 3), (64,), *body, (256, 64, 3, 3), (256,), (3, 64, 3, 3), (3,)]


def lamb_per_tensor(
    parameters: Sequence[Tensor], gradients: Sequence[Tensor], exp_avg: Sequence[Tensor], exp_avg_sq: Sequence[Tensor]
) -> None:
    """One update as the authors' trainer does it: all gradients clipped at 0.1, then LAMB in a loop over the tensors.

    Learning rate 1e-3, betas 0.9 and 0.99, epsilon 1e-6, no weight decay. The host reads both norms of every tensor.
    Finding the state and clearing the gradients are left out: they are nearly free.
    """
    torch._foreach_clamp_min_(list(gradients), -0.1)  # as torch.nn.utils.clip_grad_value_
    torch._foreach_clamp_max_(list(gradients), 0.1)
    for p, g, m, v in zip(parameters, gradients, exp_avg, exp_avg_sq, strict=True):
        m.mul_(0.9).add_(g, alpha=0.1)
        v.mul_(0.99).addcmul_(g, g, value=0.01)
        weight_norm = p.norm().clamp(0, 10)
        update = m / v.sqrt().add(1e-6)
        update_norm = update.norm()
        trust = 1.0 if weight_norm == 0 or update_norm == 0 else weight_norm / update_norm
        p.add_(update, alpha=-1e-3 * trust)  # a tensor becomes a number here
