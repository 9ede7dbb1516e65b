"""LAMB in the authors' form, by whichever code is fastest where the weights are; `reference.lamb_step` has the formula.

| backend | where | how |
|---|---|---|
| `triton` | GPUs | `eco_fast_kernels.lamb_step`: four launches for any number of tensors |
| `torch` | anywhere, meant for CPUs | torch's own loops over lists of tensors |
| `apex` | GPUs, if apex is there | `apex.optimizers.FusedLAMB`; does not clamp the weight norm, asks the host |

`triton` and `torch` read nothing back to the host. All three keep `exp_avg` and `exp_avg_sq` per parameter, so that
another one may continue a run.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from eco_fast_kernels import LambOptions, lamb_step
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.training.optim.lamb_apex import make_apex
from eco_fast.training.optim.lamb_torch import lamb_by_torch
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

    Args:
        parameters: float32, dense, all on one device.
        config: the recipe's optimizer.
        learning_rate: float32 [], on that device; read at every step.
        average: running averages of the weights, one per parameter and laid out like it; updated in place.
        average_decay: their decay.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        config: Optimizer,
        learning_rate: Tensor,
        average: list[Tensor] | None = None,
        average_decay: float = 0.0,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        every = self.param_groups[0]["params"]
        self.averages = {} if average is None else dict(zip(every, average, strict=True))
        backend = choose_backend(config.backend, every[0].device)
        self._lamb_step = lamb_by_torch if backend == "torch" else lamb_step
        self._apex = make_apex(every, config) if backend == "apex" else None
        self._options = LambOptions(
            *config.betas,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
            clip_value=config.clip_value or None,
            average_decay=average_decay,
        )

    @torch.no_grad()
    def step(self, skip: Tensor, inverse_scale: Tensor | None = None) -> None:  # type: ignore[override]
        """Update all parameters that have a gradient; the gradients are used up.

        Args:
            skip: bool []; becomes true by a gradient that is not finite. Where true, every bit stays as it is.
            inverse_scale: float32 [], undoes a gradient scaler's factor; None for 1.

        Raises:
            ValueError: no parameter has a gradient, or they are not laid out alike.
        """
        parameters = [parameter for parameter in self.param_groups[0]["params"] if parameter.grad is not None]
        if not parameters:
            raise ValueError("optimizer: expected at least one parameter with a gradient, got none")
        gradients = [parameter.grad for parameter in parameters]
        learning_rate = self.param_groups[0]["lr"]
        if self._apex is not None:
            self._step_by_apex(self._apex, parameters, gradients, learning_rate, skip, inverse_scale)
            return
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter]["exp_avg"] = torch.zeros_like(parameter)
                self.state[parameter]["exp_avg_sq"] = torch.zeros_like(parameter)
        self._lamb_step(
            parameters,
            gradients,
            [self.state[parameter]["exp_avg"] for parameter in parameters],
            [self.state[parameter]["exp_avg_sq"] for parameter in parameters],
            options=self._options,
            learning_rate=learning_rate,
            skip=skip,
            inverse_scale=inverse_scale,
            average=[self.averages[parameter] for parameter in parameters] if self.averages else None,
        )

    def _step_by_apex(
        self,
        apex: torch.optim.Optimizer,
        parameters: list[Parameter],
        gradients: list[Tensor],
        learning_rate: Tensor,
        skip: Tensor,
        inverse_scale: Tensor | None,
    ) -> None:
        """The step by apex, which takes the rate as a number and knows no skipping: the host waits for both, once."""
        multiply_gradients(gradients, torch.ones_like(learning_rate) if inverse_scale is None else inverse_scale, skip)
        rate, skipped = torch.stack([learning_rate, skip.to(learning_rate.dtype)]).tolist()
        if skipped:
            return
        if self._options.clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, self._options.clip_value)
        apex.state = self.state  # anew, for loading makes another one
        apex.param_groups[0]["lr"] = rate
        apex.step()
        for parameter in parameters if self.averages else ():
            self.averages[parameter].lerp_(parameter, 1 - self._options.average_decay)
