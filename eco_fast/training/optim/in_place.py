"""Optimizers whose tensors stay where they are for the whole run, and whose step asks the host nothing."""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from torch import Tensor

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


class InPlaceOptimizer(torch.optim.Optimizer, ABC):
    """What is given later is copied into the tensors that are there: addresses are taken once.

    The state of each parameter is there from the beginning.
    """

    @abstractmethod
    def step(self, skip: Tensor, inverse_scale: Tensor) -> None:  # type: ignore[override]
        """Update all parameters; the gradients are used up.

        Args:
            skip: bool []; where true, every bit stays as it is, whatever the gradients hold.
            inverse_scale: float32 [], undoes a gradient scaler's factor.
        """

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Copy what `state_dict` remembers into what is here; the learning rate stays the constructor's tensor.

        Raises:
            ValueError: it is not of these parameters.
        """
        for index, parameter in enumerate(self.param_groups[0]["params"]):
            entry = state_dict["state"].get(index, {})
            for name, kept in self.state[parameter].items():
                if name not in entry or entry[name].shape != kept.shape:
                    raise ValueError(
                        f"optimizer: expected {name} of shape {tuple(kept.shape)} for parameter {index}, got "
                        f"{tuple(entry[name].shape) if name in entry else 'none'}; the state is of another optimizer"
                    )
                kept.copy_(entry[name])
