"""Running a network over a whole image of any size in bounded memory.

The image is cut into tiles, each is given a halo as wide as the network's receptive field, and the halo's output is
thrown away: every output pixel sees exactly what it would see in the whole image, so there are no seams to hide. (Of
networks that see nearly everything, such as transformers, it sees what matters; see `Network.halo`.)
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eco_fast.data.images import Pixels
from eco_fast.models import Network


@dataclass(frozen=True)
class Axis:
    """Where a tile is on one axis, without and with its halo, in LR pixels."""

    first: int
    last: int
    halo_first: int
    halo_last: int

    def inner(self, scale: int) -> slice:
        """The tile inside the output that has a halo."""
        return slice((self.first - self.halo_first) * scale, (self.last - self.halo_first) * scale)


def super_resolve(
    network: Network, lr: Pixels, *, tile: int | None = None, device: str = "cpu", self_ensemble: bool = False
) -> Pixels:
    """Upscale uint8 [h, w, 3] to uint8 [scale*h, scale*w, 3], rounded to the nearest grey level.

    Args:
        network: in evaluation mode, on `device`.
        lr: 0..255, RGB.
        tile: side of a tile in LR pixels, without its halo; bounds the memory: smaller tiles go through the network
            together where they take no more. None: the network's own.
        device: where the network is.
        self_ensemble: take the mean over the 8 orientations of the image (EDSR's paper, section 3.4).
    """
    scale = network.scale
    out = np.empty((lr.shape[0] * scale, lr.shape[1] * scale, 3), dtype=np.uint8)
    run = _ensemble if self_ensemble else _run
    _fill(out, network, lr, tile or network.tile, device, lambda images: quantise(run(network, images)))
    return out


def output_of(network: Network, lr: Pixels, *, device: str = "cpu") -> npt.NDArray[np.float32]:
    """What the network makes of uint8 [h, w, 3], neither rounded nor clamped: float32 [scale*h, scale*w, 3].

    It is in grey levels, as images are. The arguments are those of `super_resolve`.
    """
    scale = network.scale
    out = np.empty((lr.shape[0] * scale, lr.shape[1] * scale, 3), dtype=np.float32)
    _fill(out, network, lr, network.tile, device, lambda images: _run(network, images) * 255)
    return out


@torch.inference_mode()
def _fill(
    out: npt.NDArray[Any], network: Network, lr: Pixels, tile: int, device: str, run: Callable[[Tensor], Tensor]
) -> None:
    """Put what `run` makes of the tiles of an image, of 0..1, to their places in `out`."""
    scale = network.scale
    rows, columns = (list(_axis(size, tile, network.halo, network.grid)) for size in lr.shape[:2])
    of_shape: dict[tuple[int, int], list[tuple[Axis, Axis]]] = defaultdict(list)
    for row, column in itertools.product(rows, columns):
        shape = (row.halo_last - row.halo_first, column.halo_last - column.halo_first)
        of_shape[shape].append((row, column))
    for (height, width), places in of_shape.items():
        for some in _chunks(places, max(1, (tile + 2 * network.halo) ** 2 // (height * width))):
            tiles = [lr[row.halo_first : row.halo_last, column.halo_first : column.halo_last] for row, column in some]
            images = torch.from_numpy(np.stack(tiles)).to(device).permute(0, 3, 1, 2).float() / 255
            pixels = run(images).permute(0, 2, 3, 1).cpu().numpy()
            for sr, (row, column) in zip(pixels, some, strict=True):
                place = (slice(side.first * scale, side.last * scale) for side in (row, column))
                out[tuple(place)] = sr[row.inner(scale), column.inner(scale)]


def quantise(image: Tensor) -> Tensor:
    """Float in 0..1 to uint8, clamped and rounded, as the SR tables score it."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def _run(network: Network, images: Tensor) -> Tensor:
    sr: Tensor = network(images.contiguous(memory_format=torch.channels_last))
    return sr


def _ensemble(network: Network, images: Tensor) -> Tensor:
    total = torch.zeros((), device=images.device)
    for transpose, *flips in itertools.product((False, True), repeat=3):
        dims = [dim for dim, flip in zip((2, 3), flips, strict=True) if flip]
        turned = images.mT if transpose else images
        sr = _run(network, turned.flip(dims)).flip(dims)
        total = total + (sr.mT if transpose else sr)
    return total / 8


def _axis(size: int, tile: int, halo: int, grid: int) -> Iterator[Axis]:
    """Cut an axis into nearly equal tiles of at most `tile`, so that no sliver is left; halos begin on the grid."""
    count = -(-size // tile)
    edges = [index * size // count for index in range(count + 1)]
    for first, last in itertools.pairwise(edges):
        yield Axis(first, last, max(first - halo, 0) // grid * grid, min(last + halo, size))


def _chunks(places: list[tuple[Axis, Axis]], count: int) -> Iterator[list[tuple[Axis, Axis]]]:
    return (places[first : first + count] for first in range(0, len(places), count))
