"""LAMB in the authors' form, by whichever code is fastest where the weights are; `reference.lamb_step` has the formula.

| backend | where | how |
|---|---|---|
| `triton` | GPUs | `LambPlan`: two launches for any number of tensors |
| `torch` | anywhere, meant for CPUs | torch's own loops over lists of tensors |
| `apex` | GPUs, if apex is there | `apex.optimizers.FusedLAMB`; does not clamp the weight norm, asks the host |

`triton` and `torch` read nothing back to the host. All three keep `exp_avg` and `exp_avg_sq` per parameter, so that
another one may continue a run.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from eco_fast_kernels import LambOptions
from eco_fast_kernels.checks import check_lamb
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.training.optim.in_place import InPlaceOptimizer, choose_backend
from eco_fast.training.optim.lamb_apex import lamb_by_apex, make_apex
from eco_fast.training.optim.lamb_torch import lamb_by_torch


class Lamb(InPlaceOptimizer):
    """The authors' LAMB: no bias correction, weight norms clamped at 10.

    All tensors stay where they are for the whole run: their addresses are taken once. What is given later is copied
    into them.

    Args:
        parameters: float32, dense, all on one device.
        gradients: one per parameter and laid out like it; read, and used up, at every step.
        config: the recipe's optimizer.
        learning_rate: float32 [], on that device; read at every step.
        average: running averages of the weights, likewise; updated in place; None for none.
        average_decay: their decay.
        moments: exp_avg and exp_avg_sq, likewise, to be updated in place; None for new ones, of zeros.

    Raises:
        ValueError: tensors that are not laid out alike, or a backend that cannot be used.
    """

    def __init__(
        self,
        parameters: Iterable[Parameter],
        gradients: list[Tensor],
        config: Optimizer,
        learning_rate: Tensor,
        *,
        average: list[Tensor] | None = None,
        average_decay: float = 0.0,
        moments: tuple[list[Tensor], list[Tensor]] | None = None,
    ) -> None:
        super().__init__(parameters, {"lr": learning_rate})
        every = self.param_groups[0]["params"]
        first, second = moments or ([torch.zeros_like(one, requires_grad=False) for one in every] for _ in range(2))
        for parameter, exp_avg, exp_avg_sq in zip(every, first, second, strict=True):
            self.state[parameter] = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq}
        options = LambOptions(
            *config.betas,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
            clip_value=config.clip_value or None,
            average_decay=average_decay,
        )
        lists = every, gradients, first, second, average or []
        backend = choose_backend(config.backend, every[0].device)
        self._update: Callable[[Tensor, Tensor, Tensor], None]
        if backend == "triton":
            from eco_fast_kernels.fused.lamb_step import LambPlan  # noqa: PLC0415 - Triton is for GPUs alone

            self._update = LambPlan(*lists, options).step
            return
        check_lamb(*lists)
        if backend == "torch":
            self._update = partial(lamb_by_torch, *lists, options)
        else:
            apex = make_apex(every, config)
            apex.state = self.state
            self._update = partial(lamb_by_apex, apex, every, gradients, average or [], options)

    @torch.no_grad()
    def step(self, skip: Tensor, inverse_scale: Tensor) -> None:  # type: ignore[override]
        """See `InPlaceOptimizer.step`."""
        self._update(self.param_groups[0]["lr"], skip, inverse_scale)
