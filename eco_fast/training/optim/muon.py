"""Muon: which weights it takes, how they lie, and who makes the step; `eco_fast_kernels.muon` has the formula.

| backend | where | how |
|---|---|---|
| `triton` | GPUs | `MuonPlan`: as many launches for any number of weights and shapes, products of fp16 |
| `torch` | anywhere, meant for CPUs | batched products of float32, one batch for each shape |

Neither reads anything back to the host. Both keep the same state, so that either may continue a run.
"""

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import groupby

import torch
from eco_fast_kernels.checks import check_muon, is_dense
from eco_fast_kernels.muon import Matrices, MuonOptions, MuonTensors, muon_step
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.training.optim.flat import VALUES_ALIGNED, FlatTensors
from eco_fast.training.optim.in_place import InPlaceOptimizer, choose_backend


def check_muon_recipe(config: Optimizer, matrices: Sequence[Tensor], device: str | torch.device) -> None:
    """Refuse what Muon cannot train.

    Args:
        config: the recipe's optimizer.
        matrices: the trainable ones of the network's `body_matrices`.
        device: where the network is.

    Raises:
        ValueError: no matrix, or a backend that cannot be used.
    """
    if config.backend == "apex":
        raise ValueError("optimizer.backend: apex has no Muon; take optimizer.backend=auto")
    choose_backend(config.backend, torch.device(device))
    if not matrices:
        raise ValueError(
            "optimizer.name: muon moves filters and matrices between the first layer and the last, but this network "
            "has none; take optimizer.name=adam, or name its layers in the class attribute body_layers"
        )


def matrices_first(parameters: Sequence[Parameter], matrices: Iterable[Parameter]) -> tuple[list[int], int]:
    """In which order Muon's weights lie in a buffer, as places in `parameters`, and how many of them are matrices.

    Those come first, those of one shape side by side.
    """
    wanted = {id(matrix) for matrix in matrices}
    chosen = [place for place, parameter in enumerate(parameters) if id(parameter) in wanted]
    chosen.sort(key=lambda place: _shape(parameters[place]))
    others = [place for place, parameter in enumerate(parameters) if id(parameter) not in wanted]
    return chosen + others, len(chosen)


class Muon(InPlaceOptimizer):
    """Muon for the matrices, AdamW for the other weights; two parameters, each the whole part of the weights' buffer.

    Args:
        weights: in the order of `matrices_first`.
        count: how many of them are matrices.
        gradients: float32 [M], laid out like the weights; read at every step.
        config: the recipe's optimizer.
        learning_rate: float32 [], on the weights' device; read at every step.
        average: float32 [M], running average of the weights; updated in place; None for none.
        average_decay: its decay.

    Raises:
        ValueError: no matrix, one whose rows do not lie one behind the other, or a backend that cannot be used.
    """

    def __init__(
        self,
        weights: FlatTensors,
        count: int,
        gradients: Tensor,
        config: Optimizer,
        learning_rate: Tensor,
        *,
        average: Tensor | None = None,
        average_decay: float = 0.0,
    ) -> None:
        views, device = weights.views[:count], weights.buffer.device
        check_muon_recipe(config, views, device)
        matrices = [_side_by_side(list(same)) for _, same in groupby(views, _shape)]
        size = matrices[-1].offset + matrices[-1].number * matrices[-1].pitch
        parts = Parameter(weights.buffer[:size]), Parameter(weights.buffer[size:])
        super().__init__(parts, {"lr": learning_rate})
        momentum, exp_avg, exp_avg_sq = (torch.zeros_like(parts[index], requires_grad=False) for index in (0, 1, 1))
        corrections = torch.zeros(2, device=device)
        self.state[parts[0]] = {"momentum": momentum}
        self.state[parts[1]] = {"exp_avg": exp_avg, "exp_avg_sq": exp_avg_sq, "corrections": corrections}
        tensors = MuonTensors(weights.buffer, gradients, average, momentum, exp_avg, exp_avg_sq, corrections)
        options = MuonOptions(
            config.adam_learning_rate / config.learning_rate,
            *config.betas,
            epsilon=config.epsilon,
            weight_decay=config.weight_decay,
            clip_value=config.clip_value or None,
            average_decay=average_decay,
        )
        self._update: Callable[[Tensor, Tensor, Tensor], None]
        if choose_backend(config.backend, device) == "triton":
            from eco_fast_kernels.fused.muon_step import MuonPlan  # noqa: PLC0415 - Triton is for GPUs alone

            self._update = MuonPlan(tensors, matrices, options).step
        else:
            check_muon(tensors, matrices)
            self._update = partial(muon_step, tensors, matrices, options)

    def step(self, skip: Tensor, inverse_scale: Tensor) -> None:  # type: ignore[override]
        """See `InPlaceOptimizer.step`; the gradients stay what they are."""
        self._update(self.param_groups[0]["lr"], skip, inverse_scale)


def _shape(weight: Tensor) -> tuple[int, int]:
    rows = int(weight.shape[0])
    return rows, weight.numel() // rows


def _side_by_side(views: Sequence[Tensor]) -> Matrices:
    """Matrices of one shape, as they lie in the buffer."""
    rows, columns = _shape(views[0])
    for view in views:
        if not is_dense(view) or (rows > 1 and view.stride(0) != columns):
            raise ValueError(
                f"optimizer.name: muon needs the values of each output together, but a weight {tuple(view.shape)} has "
                f"strides {view.stride()}; make it contiguous, or take optimizer.name=adam"
            )
    pitch = -(-rows * columns // VALUES_ALIGNED) * VALUES_ALIGNED
    return Matrices(int(views[0].storage_offset()), pitch, len(views), rows, columns)
