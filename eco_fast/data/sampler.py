"""Which crops each step trains on: a pure function of (seed, step), so that a resumed run sees the same samples.

Randomness comes straight from Philox's counter-based stream, whose values numpy guarantees, not from a Generator,
whose methods may change between versions.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eco_fast.data.noise import standard_normal

WORDS_PER_SAMPLE = 5  # random 64-bit words: image, top, left, orientation, uniform


@dataclass(frozen=True, kw_only=True)
class CropPlan:
    """The crops of one step's global batch, or of a rank's share; every array is [N].

    A sample is defined as: cut the crop, downsample, then apply `flip_rows`, `flip_columns` and `transpose`, in this
    order.
    """

    image: npt.NDArray[np.int64]
    """Index of the image."""
    top: npt.NDArray[np.int64]
    """First HR row, a multiple of the scale."""
    left: npt.NDArray[np.int64]
    """First HR column, likewise."""
    flip_rows: npt.NDArray[np.bool_]
    flip_columns: npt.NDArray[np.bool_]
    transpose: npt.NDArray[np.bool_]
    uniform: npt.NDArray[np.float64]
    """Uniform in [0, 1), for a choice per sample."""

    def part(self, samples: slice) -> "CropPlan":
        """Some of the samples: those of one rank, say."""
        return CropPlan(**{name: value[samples] for name, value in vars(self).items()})


class Sampler:
    """Crops in proportion to image area, uniform inside the image, each of the 8 orientations equally likely.

    Args:
        sizes: (height, width) of every HR image, [N, 2], multiples of the scale, at least a patch.
        scale: upscaling factor.
        patch: side of an LR patch in pixels.
        batch_size: samples per step, over all ranks.
        seed: decides everything.
    """

    def __init__(self, sizes: npt.ArrayLike, *, scale: int, patch: int, batch_size: int, seed: int) -> None:
        self.scale, self.batch_size, self.seed = scale, batch_size, seed
        height, width = np.asarray(sizes, dtype=np.int64).T
        self._rows = height // scale - patch + 1  # possible positions, in LR pixels
        self._columns = width // scale - patch + 1
        assert min(self._rows.min(), self._columns.min()) > 0, "images smaller than a patch are refused earlier"
        self._area = np.cumsum(height * width)

    def plan(self, step: int) -> CropPlan:
        """The global batch of a step, counted from 0."""
        # Each step owns a stretch of 2**64 counter values: steps can never overlap.
        words = np.random.Philox(key=self.seed, counter=[0, step, 0, 0]).random_raw(WORDS_PER_SAMPLE * self.batch_size)
        uniform = (words.reshape(WORDS_PER_SAMPLE, self.batch_size) >> np.uint64(11)) * 2.0**-53  # uniform in [0, 1)
        # Of the type of the areas: numpy would convert all of these, at every step.
        image = np.searchsorted(self._area, (uniform[0] * self._area[-1]).astype(np.int64), side="right")
        orientation = (uniform[3] * 8).astype(np.int64)
        return CropPlan(
            image=image,
            top=(uniform[1] * self._rows[image]).astype(np.int64) * self.scale,
            left=(uniform[2] * self._columns[image]).astype(np.int64) * self.scale,
            flip_rows=orientation & 1 > 0,
            flip_columns=orientation & 2 > 0,
            transpose=orientation & 4 > 0,
            uniform=uniform[4],
        )

    def noise(self, step: int, sample: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Standard normal values for one sample of a step's global batch, counted from 0."""
        count = math.prod(shape)
        return standard_normal(self._words(step, sample, 0, -(-count // 2)), np.float32)[:count].reshape(shape)

    def drop_path_uniforms(self, step: int, sample: int, count: int) -> npt.NDArray[np.float32]:
        """Uniform values in [0, 1) for one sample of a step's global batch: which branches it leaves out."""
        return (self._words(step, sample, 1, count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def _words(self, step: int, sample: int, purpose: int, count: int) -> npt.NDArray[np.uint64]:
        # The plan's stretch of counter values is number 0 of the step, the samples' are numbers 1, 2, ...
        words: npt.NDArray[np.uint64] = np.random.Philox(
            key=self.seed, counter=[0, step, 1 + sample, purpose]
        ).random_raw(count)
        return words
