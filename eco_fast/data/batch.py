"""One training batch, and everything in it that does not depend on the loader."""

from dataclasses import dataclass
from typing import Generic, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from eco_fast_kernels import crop_side, move_crops
from torch import Tensor

from eco_fast.config import Config
from eco_fast.config.schedule import learning_rate_at
from eco_fast.data.objective import BlendWeights, blend_weights_at
from eco_fast.data.sampler import CropPlan, Sampler


class Crops(NamedTuple):
    """What a loader reads for one step."""

    hr: Tensor | None
    """uint8 [N, P, P, 3] with P = scale * (patch + 4), laid out as in `eco_fast_kernels.crops` or contiguous; None if
    no sample reads HR."""
    sr: Tensor | None
    """The centroids' crops, likewise."""
    lr_hr: Tensor | None = None
    """uint8 [N, patch, patch, 3]: D(hr), where the loader downsamples."""
    lr_sr: Tensor | None = None
    """D(sr), likewise."""


class Conditions(NamedTuple):
    """What turns crops into inputs and targets; the same whoever read the crops."""

    transposed: Tensor
    """bool [N]: rows and columns are swapped."""
    input_alpha: Tensor
    """float32 [], or [N] under `alpha_sample`: weight of HR in the network's input."""
    target_alpha: Tensor
    """The same in the target."""
    learning_rate: Tensor
    """float32 [], of the optimizer."""
    noise: Tensor | None
    """float32 [N, 3, patch, patch], to be added to the network's input, in grey levels; None without noise."""
    drop_path_uniforms: Tensor | None
    """float32 [N, D], uniform in [0, 1): which branches of the network each sample leaves out; None for none."""


class Samples(NamedTuple):
    """All that a loss depends on: the fields of `Crops`, then those of `Conditions`."""

    hr: Tensor | None
    sr: Tensor | None
    lr_hr: Tensor | None
    lr_sr: Tensor | None
    transposed: Tensor
    input_alpha: Tensor
    target_alpha: Tensor
    learning_rate: Tensor
    noise: Tensor | None
    drop_path_uniforms: Tensor | None

    @classmethod
    def of(cls, crops: Crops, conditions: Conditions) -> "Samples":
        """The fields of both."""
        return cls._make((*crops, *conditions))

    def part(self, samples: slice) -> "Samples":
        """Some of the samples, without a copy; itself where those are all."""
        if samples == slice(0, len(self.transposed)):
            return self
        return Samples._make(value if value is None or value.ndim == 0 else value[samples] for value in self)

    def to(self, device: str) -> "Samples":
        """The same on a device; itself where it is there."""
        if self.transposed.device == torch.device(device):
            return self
        hr, sr, *others = self
        crops = [None if crop is None else move_crops(crop, device) for crop in (hr, sr)]
        return Samples._make([*crops, *(None if one is None else one.to(device, non_blocking=True) for one in others)])

    def complete(self) -> "Samples":
        """With both images where one is read, so that one compiled graph serves all steps; the other has no weight."""

        def first_present(image: Tensor | None, other: Tensor | None) -> Tensor | None:
            return other.detach() if image is None and other is not None else image

        return self._replace(
            hr=first_present(self.hr, self.sr),
            sr=first_present(self.sr, self.hr),
            lr_hr=first_present(self.lr_hr, self.lr_sr),
            lr_sr=first_present(self.lr_sr, self.lr_hr),
        )


class Unpackable(Protocol):
    """Samples, in whatever form a loader has them."""

    def to(self, device: str) -> Samples:
        """The samples on a device."""


Form = TypeVar("Form", bound=Unpackable)


class Batch(NamedTuple, Generic[Form]):
    """One rank's samples of a step, counted from 0."""

    step: int
    samples: Form


@dataclass(frozen=True)
class BatchPlan:
    """What one rank reads and does at a step; made once, and passed on."""

    step: int
    crops: CropPlan
    weights: BlendWeights


class BatchPlanner:
    """What the batches of a training hold: a pure function of the recipe and the step, whoever assembles them.

    Args:
        config: the recipe.
        sizes: (height, width) of every HR image, [N, 2].
        rank: which part of each global batch is planned for, 0..world_size - 1.
        world_size: number of parts.

    Raises:
        ValueError: there are more ranks than samples.
    """

    def __init__(self, config: Config, sizes: npt.ArrayLike, rank: int = 0, world_size: int = 1) -> None:
        batch_size, scale = config.train.batch_size, config.scale
        if batch_size < world_size:
            raise ValueError(
                f"train.batch_size is {batch_size}, but {world_size} processes share it; raise it to {world_size}"
            )
        self.config = config
        self.samples = slice(rank * batch_size // world_size, (rank + 1) * batch_size // world_size)
        """This rank's samples of the global batch; the ranks' shares differ by one where they must."""
        self.sizes = np.asarray(sizes, dtype=np.int64) // scale * scale
        """(height, width) of every image, int64 [N, 2], cropped to multiples of the scale, where D has its borders."""
        self.sampler = Sampler(
            self.sizes, scale=scale, patch=config.data.patch, batch_size=batch_size, seed=config.seed
        )

    @property
    def count(self) -> int:
        """Samples of this rank in a batch."""
        return self.samples.stop - self.samples.start

    @property
    def side(self) -> int:
        """HR pixels of a crop's side, its margins included."""
        return crop_side(self.config.scale, self.config.data.patch)

    def weights(self, step: int) -> BlendWeights:
        """The weights of the real pair."""
        return blend_weights_at(self.config.objective, step, self.config.train.steps)

    def learning_rate(self, step: int) -> float:
        """The optimizer's."""
        return learning_rate_at(self.config.optimizer, step, self.config.train.steps)

    def plan(self, step: int) -> BatchPlan:
        """This rank's crops at a step."""
        return BatchPlan(step, self.sampler.plan(step).part(self.samples), self.weights(step))

    def conditions(self, plan: BatchPlan) -> Conditions:
        """Everything about a step's samples but their crops."""
        crops, weights = plan.crops, plan.weights
        if self.config.objective.alpha_sample:
            input_alpha = torch.from_numpy((crops.uniform < weights.input).astype(np.float32))
            target_alpha = torch.from_numpy((crops.uniform < weights.target).astype(np.float32))
        else:
            input_alpha, target_alpha = torch.tensor(weights.input), torch.tensor(weights.target)
        return Conditions(
            transposed=torch.from_numpy(crops.transpose),
            input_alpha=input_alpha,
            target_alpha=target_alpha,
            learning_rate=torch.tensor(self.learning_rate(plan.step)),
            noise=self._noise(plan.step) if self.config.data.noise_sigma else None,
            drop_path_uniforms=self._drop_path_uniforms(plan.step) if self.config.model.drop_path_branches else None,
        )

    def _noise(self, step: int) -> Tensor:
        """Drawn in the geometry of the network's input: its values are independent, so orientations change nothing."""
        shape = (3, self.config.data.patch, self.config.data.patch)
        noise = [self.sampler.noise(step, sample, shape) for sample in range(self.samples.start, self.samples.stop)]
        return torch.from_numpy(np.stack(noise) * np.float32(self.config.data.noise_sigma))

    def _drop_path_uniforms(self, step: int) -> Tensor:
        samples, count = range(self.samples.start, self.samples.stop), self.config.model.drop_path_branches
        return torch.from_numpy(np.stack([self.sampler.drop_path_uniforms(step, sample, count) for sample in samples]))
