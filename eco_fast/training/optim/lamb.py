"""LAMB in the authors' form, by whichever code is fastest where the weights are; `reference.lamb_step` has the formula.

| backend | where | how |
|---|---|---|
| `triton` | GPUs | `eco_fast_kernels.lamb_step`: four launches for any number of tensors |
| `torch` | anywhere, meant for CPUs | tensors of one shape in one buffer, worked through in blocks that stay in cache |
| `apex` | GPUs, if apex is there | `apex.optimizers.FusedLAMB`; does not clamp the weight norm, asks the host |

`triton` and `torch` read nothing back to the host. All three keep `exp_avg` and `exp_avg_sq` per parameter, so that
another one may continue a run.
"""

from collections.abc import Iterable
from operator import attrgetter
from typing import Any, Literal

import torch
from eco_fast_kernels import LambOptions, lamb_step
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.training.optim.lamb_apex import make_apex
from eco_fast.training.optim.lamb_cpu import NORM_CLAMP, Blocks
from eco_fast.training.precision import multiply_gradients

Backend = Literal["triton", "torch", "apex"]


def choose_backend(wanted: str, device: torch.device) -> Backend:
    """Resolve `optimizer.backend`.

    Raises:
        ValueError: the backend is for GPUs and the weights are elsewhere.
    """
    on_gpu = device.type == "cuda"
    if wanted in ("triton", "apex") and not on_gpu:
        raise ValueError(
            f"optimizer.backend: {wanted} needs a GPU, but the weights are on {device}; take optimizer.backend=torch"
        )
    if wanted == "auto":
        return "triton" if on_gpu else "torch"
    return wanted  # type: ignore[return-value]  # the config has checked it


class Lamb(torch.optim.Optimizer):
    """The authors' LAMB: no bias correction, weight norms clamped at 10.

    The `torch` backend moves the parameters (and `average`) into buffers of its own at its first step, and again when
    somebody else has moved them or other parameters have gradients; shapes and strides stay as they are.

    Args:
        parameters: float32, dense, all on one device.
        config: the recipe's optimizer.
        learning_rate: float32 [], on that device; read at every step.
        average: running averages of the weights, one per parameter and laid out like it; updated in place.
        average_decay: their decay.
        compiled: compile what the `torch` backend does to a block, where that is possible.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        config: Optimizer,
        learning_rate: Tensor,
        average: list[Tensor] | None = None,
        average_decay: float = 0.0,
        *,
        compiled: bool = True,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        self.config = config
        self.average_decay = average_decay
        every = self.param_groups[0]["params"]
        self.averages = {} if average is None else dict(zip(every, average, strict=True))
        backend = choose_backend(config.backend, every[0].device)
        self._blocks: Blocks | None = None
        if backend == "torch":
            self._blocks = Blocks(config, average_decay, every[0].device, compiled=compiled)
        self._apex = make_apex(every, config) if backend == "apex" else None

    @torch.no_grad()
    def step(self, skip: Tensor, inverse_scale: Tensor | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient.

        Args:
            skip: bool []; becomes true by a gradient that is not finite. Where true, every bit stays as it is.
            inverse_scale: float32 [], undoes a gradient scaler's factor; None for 1.
        """
        parameters = self.param_groups[0]["params"]
        gradients = list(map(attrgetter("grad"), parameters))  # there are thousands: no loop of our own
        if any(gradient is None for gradient in gradients):
            parameters = [parameter for parameter in parameters if parameter.grad is not None]
            gradients = [gradient for gradient in gradients if gradient is not None]
        if not parameters:
            raise ValueError("optimizer: expected at least one parameter with a gradient, got none")
        learning_rate = self.param_groups[0]["lr"]
        if self._blocks is not None and self._blocks.hold(parameters):
            self._blocks.step(gradients, learning_rate, skip, inverse_scale)
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        if self._blocks is not None:
            self._blocks.take(parameters, self.state, self.averages)
            self._blocks.step(gradients, learning_rate, skip, inverse_scale)
        elif self._apex is not None:
            self._step_by_apex(self._apex, parameters, gradients, learning_rate, skip, inverse_scale)
        else:
            lamb_step(
                parameters,
                gradients,
                [self.state[parameter]["exp_avg"] for parameter in parameters],
                [self.state[parameter]["exp_avg_sq"] for parameter in parameters],
                options=LambOptions(
                    *self.config.betas,
                    epsilon=self.config.epsilon,
                    weight_decay=self.config.weight_decay,
                    norm_clamp=NORM_CLAMP,
                    clip_value=self.config.clip_value or None,
                    average_decay=self.average_decay,
                ),
                learning_rate=learning_rate,
                skip=skip,
                inverse_scale=inverse_scale,
                average=[self.averages[parameter] for parameter in parameters] if self.averages else None,
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from the `state_dict` of any backend."""
        super().load_state_dict(state_dict)
        if self._blocks is not None:
            self._blocks.release()  # the state has new tensors

    def _step_by_apex(
        self,
        apex: torch.optim.Optimizer,
        parameters: list[Parameter],
        gradients: list[Tensor],
        learning_rate: Tensor,
        skip: Tensor,
        inverse_scale: Tensor | None,
    ) -> None:
        """The step by apex, which takes the rate as a number and knows no skipping: the host waits for both, once.

        The gradients are used up: apex leaves its update in them.
        """
        multiply_gradients(gradients, torch.ones_like(learning_rate) if inverse_scale is None else inverse_scale, skip)
        rate, skipped = torch.stack([learning_rate, skip.to(learning_rate.dtype)]).tolist()
        if skipped:
            return
        if self.config.clip_value:
            torch.nn.utils.clip_grad_value_(parameters, self.config.clip_value)
        apex.state = self.state  # anew, for loading makes another one
        apex.param_groups[0]["lr"] = rate
        apex.step()
        for parameter in parameters if self.averages else ():
            self.averages[parameter].lerp_(parameter, 1 - self.average_decay)
