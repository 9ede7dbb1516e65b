"""Running a network over a whole image of any size in bounded memory, on the device of the image.

The image is cut into tiles, each is given a halo as wide as the network's receptive field, and the halo's output is
thrown away: every output pixel sees exactly what it would see in the whole image, so there are no seams to hide. (Of
networks that see nearly everything, such as transformers, it sees what matters; see `Network.halo`.)
"""

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from eco_fast.models import Network


@dataclass(frozen=True)
class Axis:
    """Where a tile is on one axis, without and with its halo, in LR pixels."""

    first: int
    last: int
    halo_first: int
    halo_last: int

    def outer(self) -> slice:
        """The tile with its halo, in the image."""
        return slice(self.halo_first, self.halo_last)

    def inner(self, scale: int) -> slice:
        """The tile inside the output that has a halo."""
        return slice((self.first - self.halo_first) * scale, (self.last - self.halo_first) * scale)


def upscale_tiled(network: Network, lr: Tensor, *, tile: int | None = None, self_ensemble: bool = False) -> Tensor:
    """Upscale uint8 [h, w, 3] to uint8 [scale*h, scale*w, 3], rounded to the nearest grey level.

    Nothing waits for the device.

    Args:
        network: in evaluation mode, on the image's device.
        lr: 0..255, RGB.
        tile: side of a tile in LR pixels, without its halo; bounds the memory: smaller tiles go through the network
            together where they take no more. None: the network's own.
        self_ensemble: take the mean over the 8 orientations of the image (EDSR's paper, section 3.4).
    """
    run = _ensemble if self_ensemble else _run
    return _tiled(network, lr, tile or network.tile, torch.uint8, lambda images: quantise(run(network, images)))


def output_of(network: Network, lr: Tensor) -> Tensor:
    """What the network makes of uint8 [h, w, 3], neither rounded nor clamped: float32 [scale*h, scale*w, 3].

    It is in grey levels, as images are. The arguments are those of `upscale_tiled`.
    """
    return _tiled(network, lr, network.tile, torch.float32, lambda images: _run(network, images) * 255)


@torch.inference_mode()
def _tiled(network: Network, lr: Tensor, tile: int, dtype: torch.dtype, run: Callable[[Tensor], Tensor]) -> Tensor:
    """What `run` makes of an image of 0..1, tile by tile."""
    height, width, scale = *lr.shape[:2], network.scale
    out = torch.empty((height * scale, width * scale, 3), dtype=dtype, device=lr.device)
    rows, columns = (list(_axis(size, tile, network.halo, network.grid)) for size in (height, width))
    of_shape: dict[tuple[int, int], list[tuple[Axis, Axis]]] = defaultdict(list)
    for row, column in itertools.product(rows, columns):
        shape = (row.halo_last - row.halo_first, column.halo_last - column.halo_first)
        of_shape[shape].append((row, column))
    for (height, width), places in of_shape.items():
        for some in _chunks(places, max(1, (tile + 2 * network.halo) ** 2 // (height * width))):
            tiles = torch.stack([lr[row.outer(), column.outer()] for row, column in some])
            images = run(tiles.permute(0, 3, 1, 2).float() / 255).permute(0, 2, 3, 1)
            for sr, (row, column) in zip(images, some, strict=True):
                place = (slice(side.first * scale, side.last * scale) for side in (row, column))
                out[tuple(place)] = sr[row.inner(scale), column.inner(scale)]
    return out


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
