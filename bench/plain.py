"""The plain ways that benchmarks compare with, and the shapes they are measured on."""

from collections.abc import Sequence

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
    """One LAMB update (learning rate 1e-3, betas 0.9 and 0.99) as a loop over the tensors."""
    for p, g, m, v in zip(parameters, gradients, exp_avg, exp_avg_sq, strict=True):
        m.mul_(0.9).add_(g, alpha=0.1)
        v.mul_(0.99).addcmul_(g, g, value=0.01)
        update = m / v.sqrt().add(1e-6)
        trust = p.norm().clamp(0, 10) / update.norm()
        p.add_(update * trust, alpha=-1e-3)
