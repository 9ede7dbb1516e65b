"""The skip rule, the optimizer's step, and the weights' running average; nothing is read back to the host."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from eco_fast_kernels import StepRules, StepState, decide_step
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.training.optim.flat import move_into_one_buffer, zeros_in_one_buffer
from eco_fast.training.optim.in_place import InPlaceOptimizer
from eco_fast.training.optim.lamb import Lamb
from eco_fast.training.optim.muon import Muon, matrices_first

FIRST_SCALE = 2.0**16  # the factor on 16-bit gradients, at first
GROWTH_INTERVAL = 2000  # steps without overflow after which it is doubled, as by torch's GradScaler
LOGGED = ("decided", "losses", "skips")
"""What telemetry alone reads, and no later step depends on."""


class OptimizerStep:
    """What turns gradients into a step of the weights.

    A step is skipped if its loss or a gradient is not finite, or its loss exceeds `spike_factor` times the last
    accepted one (the authors' rule).

    The parameters come to lie in one buffer, and so do their gradients and moments. All addresses stay what they are,
    so that a step can be recorded once and replayed.

    Args:
        parameters: of the network, on `device`, float32 and dense; those that are frozen are left alone.
        config: the recipe's optimizer.
        device: where the parameters are.
        matrices: those of them that Muon orthogonalises; other optimizers do not ask.
        scales: whether the gradients carry a factor, lest they underflow in 16 bits.
        average: the parameters that become running averages of the trainable ones, in their order; empty for none.
        average_decay: their decay per step.
        log_every: for how many steps the loss of each is kept.

    Attributes:
        sums: float32 [M + 1], what ranks add up: all gradients and, last, the loss on the 0..255 scale.
        gradients: views of `sums`, for each trainable parameter.
        loss: the last value of `sums`, float32 [].
        counters: what the skip rule and the reports go by.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        config: Optimizer,
        device: str,
        *,
        matrices: Iterable[Parameter] = (),
        scales: bool = False,
        average: Sequence[Parameter] = (),
        average_decay: float = 0.0,
        log_every: int = 1,
    ) -> None:
        self.config = config
        self.parameters = [parameter for parameter in parameters if parameter.requires_grad]
        count = 0
        if config.name == "muon":
            order, count = matrices_first(self.parameters, matrices)
            self.parameters = [self.parameters[place] for place in order]
            average = [average[place] for place in order] if average else ()
        self.weights = move_into_one_buffer(self.parameters)
        self.average = move_into_one_buffer(average) if average else None
        self.average_decay = average_decay
        self.sums, self.gradients = zeros_in_one_buffer(self.parameters, spare=1)
        self.loss = self.sums[-1]
        self.rules = StepRules(config.spike_factor, scales, GROWTH_INTERVAL)
        self.counters = StepState.at_start(device, log_every, FIRST_SCALE if scales else 1.0)
        self.learning_rate = torch.tensor(config.learning_rate, device=device)
        self.optimizer = (
            self._lamb() if config.name == "lamb" else self._muon(count) if config.name == "muon" else self._adam()
        )

    @property
    def scale(self) -> Tensor:
        """The factor that the gradients are expected to carry, float32 []."""
        return self.counters.scale

    @torch.no_grad()
    def step(self, learning_rate: Tensor) -> Tensor:
        """Apply `sums` to the weights, at a learning rate, float32 [].

        Returns:
            Whether the step was skipped, bool [].
        """
        self.learning_rate.copy_(learning_rate)
        skip, inverse_scale = decide_step(self.sums[:-1], self.loss, self.counters, self.rules)
        if isinstance(self.optimizer, InPlaceOptimizer):
            self.optimizer.step(skip, inverse_scale)
        else:
            self._adam_step(self.optimizer, skip, inverse_scale)
        return skip

    def check_places(self) -> None:
        """The network computes with what is updated here: nobody has given a parameter other memory."""
        places = zip(self.parameters, self.weights.views, strict=True)
        assert all(weight.data_ptr() == place.data_ptr() for weight, place in places), (
            "weights have left the optimizer's memory"
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on."""
        self.check_places()
        counters = {name: value for name, value in self.counters._asdict().items() if name not in LOGGED}
        return {**counters, "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self._use_learning_rate(self.optimizer)
        for name, value in self.counters._asdict().items():
            if name not in LOGGED:
                value.copy_(state[name])

    def _lamb(self) -> torch.optim.Optimizer:
        return Lamb(
            self.parameters,
            self.gradients,
            self.config,
            self.learning_rate,
            average=None if self.average is None else self.average.views,
            average_decay=self.average_decay,
        )

    def _muon(self, count: int) -> torch.optim.Optimizer:
        return Muon(
            self.weights,
            count,
            self.sums[:-1],
            self.config,
            self.learning_rate,
            average=None if self.average is None else self.average.buffer,
            average_decay=self.average_decay,
        )

    def _adam(self) -> torch.optim.Optimizer:
        """One of torch's, for which all weights are one tensor: it goes through them value by value."""
        config, whole = self.config, Parameter(self.weights.buffer)
        whole.grad = self.sums[:-1]
        optimizer = (torch.optim.AdamW if config.name == "adamw" else torch.optim.Adam)(
            [whole],
            lr=config.learning_rate,
            betas=config.betas,
            eps=config.epsilon,
            weight_decay=config.weight_decay,
            fused=True,
            capturable=whole.is_cuda,
        )
        self._use_learning_rate(optimizer)
        return optimizer

    def _use_learning_rate(self, optimizer: torch.optim.Optimizer) -> None:
        for group in optimizer.param_groups:
            group["lr"] = self.learning_rate  # the tensor itself: a copy would never change again

    def _adam_step(self, optimizer: torch.optim.Optimizer, skip: Tensor, inverse_scale: Tensor) -> None:
        gradients = self.sums[:-1]
        if self.rules.scales:
            gradients.mul_(inverse_scale)
        if self.config.clip_value:
            gradients.clamp_(-self.config.clip_value, self.config.clip_value)
        # torch's fused optimizers leave everything as it is where found_inf is 1, without asking the host
        optimizer.found_inf = skip.float()  # type: ignore[attr-defined]
        optimizer.step()
        if self.average is not None:
            change = self.weights.buffer - self.average.buffer
            self.average.buffer.add_(change.mul_((1 - self.average_decay) * ~skip))
