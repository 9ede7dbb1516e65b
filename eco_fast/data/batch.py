"""One step's samples, as every loader hands them over, and what of them does not depend on who reads the pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from eco_fast_kernels import margin_of, move_crops
from torch import Tensor

from eco_fast.config import Config
from eco_fast.data.sampler import Plan, Sampler
from eco_fast.objective import Mix, mix_at

PLANS = 64  # that are remembered: HR, centroids and the batch ask for the same one, some groups of steps apart


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's samples, with the mix that they are to be blended with."""

    step: int
    hr: Tensor | None
    """uint8 [N, P, P, 3] with P = scale * (patch + 4), padded as in `eco_fast_kernels.crops` or contiguous; None if
    not read."""
    sr: Tensor | None
    """The centroid's windows, likewise."""
    lr_of_hr: Tensor | None = None
    """uint8 [N, patch, patch, 3]: D(hr), where the loader makes it."""
    lr_of_sr: Tensor | None = None
    """D(sr), likewise."""
    transposed: Tensor
    """bool [N]: rows and columns are swapped."""
    mix: Mix
    input_alpha: Tensor
    """float32 [], or [N] under `alpha_sample`: weight of HR in the network's input."""
    target_alpha: Tensor
    """The same in the target."""
    noise: Tensor | None = None
    """float32 [N, 3, patch, patch], to be added to the network's input, in grey levels; None without noise."""
    draws: Tensor | None = None
    """float32 [N, D], uniform in 0..1: what the network draws for each sample; None if it draws nothing."""

    def part(self, samples: slice) -> "Batch":
        """Some of the samples, without a copy; itself where those are all."""
        if samples == slice(0, len(self.transposed)):
            return self

        def cut(value: Tensor | None) -> Tensor | None:
            return value if value is None or value.ndim == 0 else value[samples]

        parts: dict[str, Any] = {name: cut(value) for name, value in self.tensors().items()}
        return replace(self, **parts)

    def tensors(self) -> dict[str, Any]:
        """Everything that the loss depends on: tensors, or None."""
        names = [field.name for field in fields(self) if field.name not in ("step", "mix")]
        return {name: getattr(self, name) for name in names}

    def to(self, device: str) -> "Batch":
        """The same on a device; itself where it is there."""
        if self.transposed.device == torch.device(device):
            return self

        def moved(value: Any) -> Any:
            return value if value is None else value.to(device, non_blocking=True)

        values: dict[str, Any] = {
            name: moved(value) for name, value in self.tensors().items() if name not in ("hr", "sr")
        }
        windows = {"hr": self.hr, "sr": self.sr}
        values |= {name: None if image is None else move_crops(image, device) for name, image in windows.items()}
        return replace(self, **values)


class Planner:
    """What the batches of a training hold: a pure function of the recipe and the step, whoever assembles them.

    Args:
        config: the recipe.
        sizes: (height, width) of every HR picture.
        rank: which part of each global batch is planned for, 0..world - 1.
        world: number of parts.

    Raises:
        ValueError: there are more ranks than samples.
    """

    def __init__(self, config: Config, sizes: Sequence[tuple[int, int]], rank: int = 0, world: int = 1) -> None:
        batch, scale = config.train.batch, config.scale
        if batch < world:
            raise ValueError(f"train.batch is {batch}, but {world} processes are to share it; raise it to {world}")
        self.config = config
        self.samples = slice(rank * batch // world, (rank + 1) * batch // world)
        """This rank's samples of the global batch; the ranks' shares differ by one where they must."""
        self.sizes = [(height // scale * scale, width // scale * scale) for height, width in sizes]
        """(height, width) of every picture, cropped to multiples of the scale, where D has its borders."""
        self.sampler = Sampler(self.sizes, scale=scale, patch=config.data.patch, batch=batch, seed=config.seed)
        self.plan = lru_cache(PLANS)(self._plan)
        """This rank's windows at a step."""

    @property
    def count(self) -> int:
        """Samples of this rank in a batch."""
        return self.samples.stop - self.samples.start

    @property
    def side(self) -> int:
        """HR pixels of a window's side, its margins included."""
        return self.config.scale * self.config.data.patch + 2 * margin_of(self.config.scale)

    def _plan(self, step: int) -> Plan:
        return self.sampler.plan(step).part(self.samples)

    def mix(self, step: int) -> Mix:
        """The weights of the real pair."""
        return mix_at(self.config.objective, step, self.config.train.steps)

    def batch(
        self,
        step: int,
        hr: Tensor | None,
        sr: Tensor | None,
        lr_of_hr: Tensor | None = None,
        lr_of_sr: Tensor | None = None,
    ) -> Batch:
        """A batch of windows that were read according to the plan."""
        plan, mix = self.plan(step), self.mix(step)
        if self.config.objective.alpha_sample:
            input_alpha = torch.from_numpy((plan.chance < mix.input).astype(np.float32))
            target_alpha = torch.from_numpy((plan.chance < mix.target).astype(np.float32))
        else:
            input_alpha, target_alpha = torch.tensor(mix.input), torch.tensor(mix.target)
        return Batch(
            step=step,
            hr=hr,
            sr=sr,
            lr_of_hr=lr_of_hr,
            lr_of_sr=lr_of_sr,
            transposed=torch.from_numpy(plan.transpose),
            mix=mix,
            input_alpha=input_alpha,
            target_alpha=target_alpha,
            noise=self._noise(step) if self.config.data.noise_sigma else None,
            draws=self._draws(step) if self.config.model.draws else None,
        )

    def _noise(self, step: int) -> Tensor:
        """Drawn in the geometry of the network's input: its values are independent, so orientations change nothing."""
        shape = (3, self.config.data.patch, self.config.data.patch)
        noise = [self.sampler.noise(step, sample, shape) for sample in range(self.samples.start, self.samples.stop)]
        return torch.from_numpy(np.stack(noise) * np.float32(self.config.data.noise_sigma))

    def _draws(self, step: int) -> Tensor:
        samples, count = range(self.samples.start, self.samples.stop), self.config.model.draws
        return torch.from_numpy(np.stack([self.sampler.draws(step, sample, count) for sample in samples]))
