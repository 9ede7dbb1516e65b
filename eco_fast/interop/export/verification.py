"""Whether a file does what its network does: its own runtime against torch in float32, on real images."""

import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from eco_fast.data.folders import builtin_images
from eco_fast.data.images import Pixels, read_image
from eco_fast.interop.export.planned_file import Runner
from eco_fast.models import Network

SIZES = ((13, 21), (27, 11), (17, 19))
"""Height and width in LR pixels of the images: no multiples of any window."""
MOST_RELATIVE = 1e-5
"""How far float32 may be off at any pixel, as a part of the largest value."""
MOST_LEVELS = 0.5
"""How many grey levels 16 bits may be off at any pixel."""


@dataclass(frozen=True)
class Difference:
    """The worst pixel of all images; NaN where an output is not finite or of another shape."""

    levels: float
    """Grey levels, 0..255."""
    relative: float
    """As a part of the largest value."""
    pixels_per_second: float | None
    """LR pixels of the largest image, in the file's own runtime on this machine; None where it cannot run the file."""

    def allowed(self, precision: str) -> bool:
        """Whether a file of this precision may be off so far."""
        return self.relative < MOST_RELATIVE if precision == "fp32" else self.levels < MOST_LEVELS


class Reference:
    """Photographs of `SIZES`, one by one and three at once, with what the network makes of them in float32.

    Args:
        network: on the CPU, in evaluation mode.
    """

    @torch.inference_mode()
    def __init__(self, network: Network) -> None:
        photos = [read_image(path) for _, path in builtin_images("test")]
        self.images = [_middle(photo, *size) for photo, size in zip(photos, SIZES, strict=True)]
        self.images.append(torch.cat([_middle(photo, *SIZES[1]) for photo in photos]))
        self.outputs: list[Tensor] = [network(image) for image in self.images]

    def compare(self, runs: Iterable[Runner], *, timed: bool) -> Difference:
        """The difference of the runs' outputs; `timed`: the first run is the file's own runtime."""
        worst, largest, speed = 0.0, max(float(output.abs().max()) for output in self.outputs), None
        for place, run in enumerate(runs):
            for image, output in zip(self.images, self.outputs, strict=True):
                worst = max(worst, _distance(run(image), output), key=lambda value: (value != value, value))  # noqa: PLR0124 - NaN is worst
            if place == 0 and timed:
                speed = self._speed(run)
        return Difference(255 * worst, worst / largest, speed)

    def _speed(self, run: Runner) -> float:
        image = self.images[len(SIZES) - 1]
        start = time.perf_counter()
        run(image)
        return image[0, 0].numel() / (time.perf_counter() - start)


def _middle(photo: Pixels, height: int, width: int) -> Tensor:
    top, left = (photo.shape[0] - height) // 2, (photo.shape[1] - width) // 2
    cut = photo[top : top + height, left : left + width]
    return torch.tensor(cut).permute(2, 0, 1)[None].float() / 255


def _distance(sr: Tensor, planned: Tensor) -> float:
    return float((sr - planned).abs().max()) if sr.shape == planned.shape else float("nan")
