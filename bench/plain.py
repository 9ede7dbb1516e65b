"""What benchmarks compare LAMB with: the authors' trainer, and RCAN's shapes."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def rcan_shapes() -> list[tuple[int, ...]]:
    """RCAN's trainable tensors at x2: 10 groups of 20 blocks, 64 features, reduction 16; 15 444 643 weights."""
    conv: list[tuple[int, ...]] = [(64, 64, 3, 3), (64,)]
    attention: list[tuple[int, ...]] = [(4, 64, 1, 1), (4,), (64, 4, 1, 1), (64,)]
    body = ((conv * 2 + attention) * 20 + conv) * 10 + conv
    return [(64, 3, 3, 3), (64,), *body, (256, 64, 3, 3), (256,), (3, 64, 3, 3), (3,)]


def lamb_per_tensor(parameters: Sequence[nn.Parameter], state: dict[nn.Parameter, dict[str, Any]]) -> None:
    """One update as the authors' trainer does it: all gradients clipped at 0.1, then LAMB in a loop over the tensors.

    Learning rate 1e-3, betas 0.9 and 0.99, epsilon 1e-6, no weight decay. The host reads both norms of every tensor.
    `state` holds exp_avg, exp_avg_sq and step of each parameter.
    """
    nn.utils.clip_grad_value_(parameters, 0.1)
    for parameter in parameters:
        if parameter.grad is None:
            continue
        p, g, kept = parameter.data, parameter.grad.data, state[parameter]
        m, v = kept["exp_avg"], kept["exp_avg_sq"]
        kept["step"] += 1
        m.mul_(0.9).add_(g, alpha=0.1)
        v.mul_(0.99).addcmul_(g, g, value=0.01)
        weight_norm = torch.norm(p).clamp(0, 10)
        update = m / v.sqrt().add(1e-6)
        update_norm = torch.norm(update)
        trust = 1.0 if weight_norm == 0 or update_norm == 0 else weight_norm / update_norm
        p.add_(update, alpha=-1e-3 * trust)


def lamb_parameters(device: str) -> tuple[list[nn.Parameter], dict[nn.Parameter, dict[str, Any]]]:
    """RCAN's parameters with gradients, and the state of `lamb_per_tensor`."""
    parameters = [nn.Parameter(torch.randn(shape, device=device) * 0.05) for shape in rcan_shapes()]
    state: dict[nn.Parameter, dict[str, Any]] = {}
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        state[parameter] = {"step": 0, **moments}
    return parameters, state
