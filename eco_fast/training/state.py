"""What a training begins with, and what it continues from."""

import copy
import math
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eco_fast.config import Config
from eco_fast.models import Network, build, warm_start
from eco_fast.training.optim.optimizer_step import OptimizerStep
from eco_fast.training.precision import Precision, set_precision
from eco_fast.utils.device import tune_malloc


def initial_network(config: Config, *, warm: bool = True) -> tuple[Network, list[str]]:
    """The network that a training begins with, and the names of the weights that its warm start has left fresh.

    Args:
        config: the recipe, whose seed decides the fresh weights.
        warm: take the others from `model.start_from`, where the recipe names one.

    Raises:
        ValueError: the checkpoint to start from cannot be used; names it.
    """
    torch.manual_seed(config.seed)
    network = build(config.model, config.scale)
    start = config.model.start_from
    return network, list(warm_start(network, Path(start))) if warm and start else []


class TrainingState:
    """Everything that a checkpoint holds: the weights, their running average, the optimizer's state, the run's course.

    Args:
        config: the recipe.
        device: where it lives.
        saved: a checkpoint's state to continue from, or None to begin.
        label: precedes the line that says so.
    """

    def __init__(self, config: Config, device: str, saved: dict[str, Any] | None, label: str) -> None:
        self.config, self.device = config, device
        tune_malloc(device)
        self.precision: Precision = set_precision(config.train, device)
        self.network, kept = initial_network(config, warm=saved is None)
        if config.model.start_from and saved is None:
            print(
                f"{label} starts from {config.model.start_from}; fresh weights: {', '.join(kept) or 'none'}", flush=True
            )
        self.network.to(device=device, memory_format=self.network.memory_format)  # type: ignore[call-overload]
        self.averaged: Network | None = None
        averages: list[nn.Parameter] = []
        if config.train.ema_decay:
            self.averaged = copy.deepcopy(self.network).requires_grad_(requires_grad=False)
            pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
            averages = [average for average, parameter in pairs if parameter.requires_grad]
        self.updater = OptimizerStep(
            self.network.parameters(),
            config.optimizer,
            device,
            matrices=self.network.body_matrices(),
            scales=self.precision.scales_gradients,
            average=averages,
            average_decay=config.train.ema_decay,
            log_every=config.train.log_every,
        )
        self.start, self.best = 0, -math.inf
        if saved is not None:
            self.start, self.best = saved["step"], saved["best"]
            self.network.load_state_dict(saved["network"])
            if self.averaged is not None:
                self.averaged.load_state_dict(saved["averaged"])
            self.updater.load_state_dict(saved["updater"])
            self.updater.counters.decided.fill_(self.start)
            print(f"{label} continues at step {self.start} of {config.train.steps}", flush=True)

    @property
    def result(self) -> Network:
        """The network that is scored and kept for use."""
        return self.network if self.averaged is None else self.averaged

    def state_dict(self) -> dict[str, Any]:
        """What the training continues from, apart from the step."""
        state: dict[str, Any] = {"best": self.best, "network": self.network.state_dict()}
        if self.averaged is not None:
            state["averaged"] = self.averaged.state_dict()
        return {**state, "updater": self.updater.state_dict()}
