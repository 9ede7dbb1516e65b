"""Optimizers, the course of the learning rate, and the rule that skips bad steps."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.lamb import Lamb


def learning_rate_at(config: Optimizer, step: int, steps: int) -> float:
    """Learning rate of a step, counted from 0, in a run of `steps`."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    if config.schedule == "cosine":
        done = (step - config.warmup_steps) / max(steps - config.warmup_steps, 1)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))
    if config.schedule == "step":
        return config.learning_rate * 0.5 ** (step // config.halve_every)
    return config.learning_rate


class Updater:
    """Gradient clipping, the skip rule and the optimizer's step; reads nothing back to the host.

    A step is skipped if its loss or a gradient is not finite, or its loss exceeds `spike_factor` times the last
    accepted one (the authors' rule; they start it at 100, in grey levels).

    Args:
        parameters: trainable, on `device`.
        config: the recipe's optimizer.
        device: where the parameters are.
        compiled: compile the optimizer's own code, where it has some that can be.
    """

    def __init__(
        self, parameters: Iterable[Parameter], config: Optimizer, device: str, *, compiled: bool = True
    ) -> None:
        self.config = config
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.last_accepted = torch.tensor(100.0, device=device)
        self.skipped = torch.zeros((), dtype=torch.int64, device=device)
        self.skipped_in_row = torch.zeros((), dtype=torch.int64, device=device)
        if config.name == "lamb":
            self.optimizer: torch.optim.Optimizer = Lamb(self.parameters, config, self.learning_rate, compiled=compiled)
        else:
            kind = torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam
            self.optimizer = kind(
                self.parameters,
                lr=self.learning_rate,
                betas=config.betas,
                eps=config.epsilon,
                weight_decay=config.weight_decay,
                fused=True,
            )

    def step(self, loss: Tensor, finite: Tensor, learning_rate: float) -> Tensor:
        """Apply the gradients of `loss` (float32 []) if it is `finite` (bool []).

        Returns:
            Whether the step was skipped, bool [].
        """
        self.learning_rate.fill_(learning_rate)
        skip = ~finite
        if self.config.spike_factor:
            skip |= loss.detach() > self.config.spike_factor * self.last_accepted
        if isinstance(self.optimizer, Lamb):
            self.optimizer.step(skip)  # adds gradients that are not finite to `skip`
        else:
            gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
            norms = torch._foreach_norm(gradients, float("inf"))  # noqa: SLF001 - shows any NaN or inf
            skip |= ~torch.stack(norms).isfinite().all()
            if self.config.clip_value:
                torch.nn.utils.clip_grad_value_(self.parameters, self.config.clip_value)
            # torch's fused optimizers leave everything as it is where found_inf is 1, without asking the host
            self.optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.last_accepted = torch.where(skip, self.last_accepted, loss.detach())
        self.skipped += skip
        self.skipped_in_row = (self.skipped_in_row + 1) * skip
        return skip

    def state_dict(self) -> dict[str, object]:
        """Everything that the next step depends on."""
        counters = {"last_accepted": self.last_accepted, "skipped": self.skipped, "skipped_in_row": self.skipped_in_row}
        return {"optimizer": self.optimizer.state_dict(), **counters}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate  # the loaded copy would never change again
        for name in ("last_accepted", "skipped", "skipped_in_row"):
            setattr(self, name, state[name].to(self.learning_rate.device))
