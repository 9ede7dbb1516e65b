"""Optimizers, the course of the learning rate, and the rule that skips bad steps."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.training.optim.lamb import Lamb
from eco_fast.training.precision import GradientScale, multiply_gradients

COUNTERS = ("last_accepted", "skipped", "skipped_in_row")


def learning_rate_at(config: Optimizer, step: int, steps: int) -> float:
    """Learning rate of a step, counted from 0, in a run of `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.learning_rate * 0.5 ** (step // config.step_size)
    if config.schedule == "milestones":
        return float(config.learning_rate * 0.5 ** sum(step >= milestone for milestone in config.milestones))
    return config.learning_rate


class OptimizerStep:
    """Gradient clipping, the skip rule, the optimizer's step, the weights' average; reads nothing back to the host.

    A step is skipped if its loss or a gradient is not finite, or its loss exceeds `spike_factor` times the last
    accepted one (the authors' rule; they start it at 100, in grey levels).

    Args:
        parameters: of the network, on `device`; those that are frozen are left alone.
        config: the recipe's optimizer.
        device: where the parameters are.
        scale: the factor on 16-bit gradients, or None for gradients that need none.
        average: running averages of the trainable parameters, in their order; empty for none.
        average_decay: their decay per step.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        config: Optimizer,
        device: str,
        scale: GradientScale | None = None,
        average: Sequence[Tensor] = (),
        average_decay: float = 0.0,
    ) -> None:
        self.config, self.gradient_scale = config, scale
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.average, self.average_decay = list(average), average_decay
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.last_accepted = torch.tensor(100.0, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped_in_row = torch.zeros((), dtype=torch.int64, device=device)
        self._one = torch.ones((), device=device)
        if config.name == "lamb":
            self.optimizer: torch.optim.Optimizer = Lamb(
                self.parameters, config, self.learning_rate, self.average or None, average_decay
            )
        else:
            kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
            self.optimizer = kind(
                self.parameters,
                lr=config.learning_rate,
                betas=config.betas,
                eps=config.epsilon,
                weight_decay=config.weight_decay,
                fused=True,
            )
        self._use_learning_rate()

    @property
    def scale(self) -> Tensor:
        """The factor that the gradients are expected to carry, float32 []."""
        return self._one if self.gradient_scale is None else self.gradient_scale.value

    def step(self, loss: Tensor, learning_rate: float) -> Tensor:
        """Apply the gradients of `loss` (float32 [], on the 0..255 scale) and forget them.

        Returns:
            Whether the step was skipped, bool [].
        """
        self.learning_rate.fill_(learning_rate)
        skip = ~loss.isfinite()
        if self.config.spike_factor:
            spike = loss > self.config.spike_factor * self.last_accepted
            skip |= spike
        inverse_scale = None if self.gradient_scale is None else self.gradient_scale.value.reciprocal()
        if isinstance(self.optimizer, Lamb):
            self.optimizer.step(skip, inverse_scale)  # adds gradients that are not finite to `skip`
        else:
            self._adam_step(skip, inverse_scale)
        if self.gradient_scale is not None:
            self.gradient_scale.update(skip & ~spike if self.config.spike_factor else skip)
        self.optimizer.zero_grad()
        # in place, so that a step that is recorded once and replayed goes on from its own results
        self.last_accepted.copy_(torch.where(skip, self.last_accepted, loss))
        self.skipped.add_(skip)
        self.skipped_in_row.add_(1).mul_(skip)
        return skip

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        state: dict[str, Any] = {name: getattr(self, name) for name in COUNTERS}
        state["optimizer"] = self.optimizer.state_dict()
        if self.gradient_scale is not None:
            state["gradient_scale"] = self.gradient_scale.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._use_learning_rate()
        for name in COUNTERS:
            getattr(self, name).copy_(state[name])
        if self.gradient_scale is not None:
            self.gradient_scale.load_state_dict(state["gradient_scale"])

    def _use_learning_rate(self) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate  # the tensor itself: a copy would never change again

    @torch.no_grad()
    def _adam_step(self, skip: Tensor, inverse_scale: Tensor | None) -> None:
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        multiply_gradients(gradients, self._one if inverse_scale is None else inverse_scale, skip)
        if self.config.clip_value:
            torch.nn.utils.clip_grad_value_(self.parameters, self.config.clip_value)
        # torch's fused optimizers leave everything as it is where found_inf is 1, without asking the host
        self.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        self.optimizer.step()
        if self.average:
            change = torch._foreach_sub(list[Tensor](self.parameters), self.average)  # noqa: SLF001 - no public name
            torch._foreach_mul_(change, (1 - self.average_decay) * ~skip)
            torch._foreach_add_(self.average, change)
