"""Which windows each step trains on: a pure function of (seed, step), so that a resumed run sees the same samples.

Randomness comes straight from Philox's counter-based stream, whose values numpy guarantees, not from a Generator,
whose methods may change between versions.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from eco_fast.data.noise import standard_normal

DRAWS = 5  # random 64-bit words per sample: image, top, left, orientation, chance


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The samples of one step's global batch; every array is [batch].

    The sample is defined as: cut the windows, downsample, then apply `flip_rows`, `flip_columns` and `transpose`, in
    this order.
    """

    image: npt.NDArray[np.int64]
    """Index of the picture."""
    top: npt.NDArray[np.int64]
    """First HR row of the window, a multiple of the scale."""
    left: npt.NDArray[np.int64]
    """First HR column, likewise."""
    flip_rows: npt.NDArray[np.bool_]
    flip_columns: npt.NDArray[np.bool_]
    transpose: npt.NDArray[np.bool_]
    chance: npt.NDArray[np.float64]
    """Uniform in 0..1, for per-sample choices."""

    def part(self, samples: slice) -> "Plan":
        """Some of the samples: those of one rank, say."""
        return Plan(**{name: value[samples] for name, value in vars(self).items()})


class Sampler:
    """Windows in proportion to picture area, uniform inside the picture, each of the 8 orientations equally likely.

    Args:
        sizes: (height, width) of every HR picture, multiples of the scale, at least a patch.
        scale: upscaling factor.
        patch: side of an LR patch in pixels.
        batch: samples per step, over all ranks.
        seed: decides everything.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], *, scale: int, patch: int, batch: int, seed: int) -> None:
        self.scale, self.batch, self.seed = scale, batch, seed
        height, width = np.array(sizes, dtype=np.int64).T
        self._rows = height // scale - patch + 1  # possible positions, in LR pixels
        self._columns = width // scale - patch + 1
        assert min(self._rows.min(), self._columns.min()) > 0, "pictures smaller than a patch are refused earlier"  # noqa: S101
        self._area = np.cumsum(height * width)

    def plan(self, step: int) -> Plan:
        """The global batch of a step, counted from 0."""
        # Each step owns a stretch of 2**64 counter values: steps can never overlap.
        words = np.random.Philox(key=self.seed, counter=[0, step, 0, 0]).random_raw(DRAWS * self.batch)
        chance = (words.reshape(DRAWS, self.batch) >> np.uint64(11)) * 2.0**-53  # uniform in [0, 1)
        image = np.searchsorted(self._area, np.floor(chance[0] * self._area[-1]), side="right")
        orientation = (chance[3] * 8).astype(np.int64)
        return Plan(
            image=image,
            top=(chance[1] * self._rows[image]).astype(np.int64) * self.scale,
            left=(chance[2] * self._columns[image]).astype(np.int64) * self.scale,
            flip_rows=orientation & 1 > 0,
            flip_columns=orientation & 2 > 0,
            transpose=orientation & 4 > 0,
            chance=chance[4],
        )

    def noise(self, step: int, sample: int, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:
        """Standard normal values for one sample of a step's global batch, counted from 0."""
        count = math.prod(shape)
        return standard_normal(self._words(step, sample, 0, -(-count // 2)), np.float32)[:count].reshape(shape)

    def draws(self, step: int, sample: int, count: int) -> npt.NDArray[np.float32]:
        """Uniform values in [0, 1) for one sample of a step's global batch."""
        return (self._words(step, sample, 1, count) >> np.uint64(40)).astype(np.float32) * np.float32(2.0**-24)

    def _words(self, step: int, sample: int, purpose: int, count: int) -> npt.NDArray[np.uint64]:
        # The plan's stretch of counter values is number 0 of the step, the samples' are numbers 1, 2, ...
        words: npt.NDArray[np.uint64] = np.random.Philox(
            key=self.seed, counter=[0, step, 1 + sample, purpose]
        ).random_raw(count)
        return words
