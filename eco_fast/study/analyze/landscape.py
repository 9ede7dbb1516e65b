"""`eco-fast analyze landscape`: loss and gradient along the gradient's direction (paper, section 6.1, Figure 2).

After Santurkar et al., "How Does Batch Normalization Help Optimization?" (NeurIPS 2018), section 3.1: at a point x of
the training, g being the gradient of its batch, loss and gradient are computed at the points x' = x - t g/|g|. Reported
are the range of the losses, the largest gradient difference |g(x') - g(x)| and the effective beta-smoothness, the
largest |g(x') - g(x)| / |x' - x|.

**The lengths t.** Santurkar et al. train with SGD, and t is 1/2 to 4 times learning rate * |g|: 1/2 to 4 times the
distance that a step moves the weights. Adam and LAMB do not move in proportion to |g|, so we measure that distance: the
optimizer takes its next step, with its moments and its learning rate, on the same batch. Losses and gradients at
different distances do not tell which objective is smoother, so at each step all runs use the same lengths, multiples of
their mean distance.

`landscape_report.py` writes the results.
"""

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.config.schedule import learning_rate_at
from eco_fast.data.batch import Samples
from eco_fast.models import Network
from eco_fast.study.analyze.gradient_walk import measure, norm_of
from eco_fast.study.analyze.landscape_report import StepLandscape, show_landscape, write_landscape
from eco_fast.study.analyze.runs import Run, open_runs, recipe_at
from eco_fast.training.optim.optimizer_step import OptimizerStep
from eco_fast.training.precision import set_precision
from eco_fast.training.step import TrainingLoss, patches_at_once, split
from eco_fast.utils.progress import track

SAME = (
    *("scale", "model.", "data.patch", "data.rounding", "data.noise_sigma", "objective.loss", "optimizer."),
    *("train.steps", "train.batch_size"),
)


class BatchLoss:
    """The mean loss of some batches and its gradient, as a function of the trained weights.

    Args:
        network: its weights are overwritten.
        recipe: determines the loss and the precision.
        batches: on the network's device, each of `train.batch_size` samples.
    """

    def __init__(self, network: Network, recipe: Config, batches: Sequence[Samples]) -> None:
        device = str(batches[0].target_alpha.device)
        self.loss = TrainingLoss(network, recipe.data, recipe.objective, set_precision(recipe.train, device))
        self.weights = [weight for weight in network.parameters() if weight.requires_grad]
        samples = recipe.train.batch_size
        cuts = split(samples, patches_at_once(recipe.train, samples))
        self.parts = [(batch.part(cut), (cut.stop - cut.start) / samples) for batch in batches for cut in cuts]
        self.batches = len(batches)

    @property
    def point(self) -> Tensor:
        """A copy of the weights, float32 [P]."""
        return _flat(self.weights)

    @torch.no_grad()
    def move(self, point: Tensor) -> None:
        """Copy float32 [P] into the weights."""
        for weight, part in zip(self.weights, self._like_weights(point), strict=True):
            weight.copy_(part)

    def __call__(self, point: Tensor) -> tuple[float, Tensor]:
        """The loss, on the 0..255 scale, and its gradient, float32 [P], at the weights float32 [P]."""
        self.move(point)
        loss, gradient = 0.0, torch.zeros_like(point)
        for part, share in self.parts:
            value = self.loss(part, point.new_ones(()))
            gradient += _flat(torch.autograd.grad(value, self.weights)) * (share / self.batches)
            loss += value.item() * (share / self.batches)
        return loss, gradient

    def distance_of(self, updater: OptimizerStep, learning_rate: float) -> float:
        """The l2 distance that one optimizer step moves the weights; they stay moved."""
        before = self.point
        loss, gradient = self(before)
        for place, part in zip(updater.gradients, self._like_weights(gradient), strict=True):
            place.copy_(part)
        updater.loss.fill_(loss)
        updater.step(before.new_tensor(learning_rate))
        return norm_of(self.point - before)

    def _like_weights(self, flat: Tensor) -> list[Tensor]:
        parts = flat.split_with_sizes([weight.numel() for weight in self.weights])
        return [part.view(weight.shape) for part, weight in zip(parts, self.weights, strict=True)]


def landscape(folders: Sequence[Path], out: Path, lengths: tuple[float, float, float], batches: int) -> None:
    """Measure runs at all kept steps that they share, and write the results.

    The end of the training is left out: no step begins there.

    Args:
        folders: runs of the same recipe with different objectives and seeds.
        out: folder of the results.
        lengths: first and last multiple of a step's distance, above 0, and the number of evenly spaced multiples.
        batches: training batches to average the loss over, starting with the step's own.

    Raises:
        ValueError: bad lengths, or runs that cannot be compared.
    """
    first, last, count = lengths
    if not (0 < first <= last < math.inf and count >= 1 and count % 1 == 0 and batches >= 1):
        raise ValueError(
            "expected 0 < FIRST <= LAST and at least one length and one batch, "
            f"got --lengths {first:g} {last:g} {count:g} --batches {batches}"
        )
    runs = open_runs(folders, SAME)
    steps = sorted(set.intersection(*(set(run.kept_steps()) for run in runs)) - {runs[0].config.train.steps})
    multiples = np.linspace(first, last, int(count)).tolist()
    found = []
    for step in track(steps, description="landscape"):
        unit = statistics.fmean(distance_of_step(run, step, batches) for run in runs)
        for run in runs:
            loss, _ = begin(run, step, batches)
            try:
                measures = measure(loss, loss.point, [multiple * unit for multiple in multiples])
            except ValueError as error:
                raise ValueError(f"{run.folder}: step {step}: {error}") from error
            found.append(StepLandscape(run, step, unit, multiples, measures))
    write_landscape(out, found)
    show_landscape(out, found)


def distance_of_step(run: Run, step: int, batches: int = 1) -> float:
    """The l2 distance that the run's optimizer moves the weights in this step, counted from 0."""
    loss, updater = begin(run, step, batches)
    return loss.distance_of(updater, learning_rate_at(run.config.optimizer, step, run.config.train.steps))


def begin(run: Run, step: int, batches: int) -> tuple[BatchLoss, OptimizerStep]:
    """The loss of a step's batches under the run's objective, at the step's weights, and its optimizer."""
    network, updater = run.training(step)
    recipe = recipe_at(run.config, step)
    return BatchLoss(network, recipe, run.batches(recipe, step, batches)), updater


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
