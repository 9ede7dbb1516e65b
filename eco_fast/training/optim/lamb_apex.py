"""apex's FusedLAMB in the authors' form, checked at start against the definition."""

import math
from functools import cache
from importlib import import_module
from typing import Any

import torch
from eco_fast_kernels import LambOptions
from eco_fast_kernels.reference import lamb_step
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.training.optim.lamb_torch import unscale_and_clip


def make_apex(parameters: list[Parameter], config: Optimizer) -> torch.optim.Optimizer:
    """An optimizer of apex in the authors' form, checked against the reference.

    Raises:
        ValueError: apex is missing, or does something else.
    """
    try:
        fused_lamb = import_module("apex.optimizers").FusedLAMB
        trial = Parameter(torch.linspace(-1, 1, 64, device=parameters[0].device))
        expected = Parameter(trial.detach().clone())
        trial.grad = torch.linspace(-0.05, 0.07, 64, device=trial.device)
        optimizer = _apex_of(fused_lamb, [trial], config)
        optimizer.param_groups[0]["lr"] = 0.01
        gradient = trial.grad.clone()  # apex uses it up
        optimizer.step()
        made: torch.optim.Optimizer = _apex_of(fused_lamb, parameters, config)
    except (ImportError, AttributeError, RuntimeError) as error:
        raise ValueError(
            f"optimizer.backend: apex's FusedLAMB cannot be used ({error}); build apex with its CUDA extensions, or "
            "take optimizer.backend=triton"
        ) from error
    lamb_step(
        [expected.detach()],
        [gradient],
        [torch.zeros_like(gradient)],
        [torch.zeros_like(gradient)],
        [],
        LambOptions(*config.betas, epsilon=config.epsilon, weight_decay=config.weight_decay),
        learning_rate=torch.tensor(0.01, device=gradient.device),
        skip=torch.tensor(False, device=gradient.device),
        inverse_scale=torch.ones((), device=gradient.device),
    )
    if not torch.allclose(trial, expected, rtol=1e-5, atol=1e-6):
        raise ValueError(
            "optimizer.backend: one step of this apex differs from the recipe's LAMB by "
            f"{float((trial - expected).detach().abs().max()):.1e}; take optimizer.backend=triton"
        )
    _say_what_apex_lacks()
    return made


def lamb_by_apex(
    apex: torch.optim.Optimizer,
    parameters: list[Parameter],
    gradients: list[Tensor],
    average: list[Tensor],
    options: LambOptions,
    learning_rate: Tensor,
    skip: Tensor,
    inverse_scale: Tensor,
) -> None:
    """One step, of which no CUDA graph can be made: apex takes the rate as a number and knows no skipping.

    The host waits for both, once. The gradients are used up. The moments are those in `apex.state`.
    """
    rate, skipped = torch.stack([learning_rate, skip.to(learning_rate.dtype)]).tolist()
    if skipped:
        return
    unscale_and_clip(gradients, inverse_scale, options.clip_value)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient  # where apex looks for it
    apex.param_groups[0]["lr"] = rate
    apex.step()
    for parameter, mean in zip(parameters if average else (), average, strict=True):
        mean.lerp_(parameter, 1 - options.average_decay)


def _apex_of(fused_lamb: Any, parameters: list[Parameter], config: Optimizer) -> Any:
    return fused_lamb(
        parameters,
        lr=config.learning_rate,
        bias_correction=False,
        betas=config.betas,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        adam_w_mode=True,
        grad_averaging=True,
        max_grad_norm=math.inf,  # the authors do not bound the norm of all gradients
        use_nvlamb=True,  # the trust ratio also where there is no weight decay
    )


@cache
def _say_what_apex_lacks() -> None:
    print("LAMB by apex: tensors whose norm exceeds 10 take larger steps than in the authors' form, which clamps it")
