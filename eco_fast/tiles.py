"""Running a network over a whole image of any size in bounded memory.

The image is cut into tiles, each is given a halo as wide as the network's receptive field, and the halo's output is
thrown away: every output pixel sees exactly what it would see in the whole image, so there are no seams to hide.
"""

import itertools
from collections.abc import Iterator

import numpy as np
import torch

from eco_fast.images import Pixels
from eco_fast.models import Network

TILE = 256  # LR pixels a side


@torch.inference_mode()
def super_resolve(network: Network, lr: Pixels, *, tile: int = TILE, device: str = "cpu") -> Pixels:
    """Upscale uint8 [h, w, 3] to uint8 [scale*h, scale*w, 3], rounded to the nearest grey level.

    Args:
        network: in evaluation mode, on `device`.
        lr: 0..255, RGB.
        tile: side of a tile in LR pixels, without its halo; bounds the memory.
        device: where the network is.
    """
    height, width = lr.shape[:2]
    scale, halo = network.scale, network.halo
    out = np.empty((height * scale, width * scale, 3), dtype=np.uint8)
    for top, bottom in _spans(height, tile):
        for left, right in _spans(width, tile):
            above, beside = max(top - halo, 0), max(left - halo, 0)
            window = np.array(lr[above : bottom + halo, beside : right + halo], order="C")  # torch wants it writable
            image = torch.from_numpy(window).to(device)[None].permute(0, 3, 1, 2).float() / 255
            sr = quantise(network(image.contiguous(memory_format=torch.channels_last)))[0].permute(1, 2, 0)
            inner = sr[
                (top - above) * scale : (bottom - above) * scale, (left - beside) * scale : (right - beside) * scale
            ]
            out[top * scale : bottom * scale, left * scale : right * scale] = inner.cpu().numpy()
    return out


def quantise(image: torch.Tensor) -> torch.Tensor:
    """Float in 0..1 to uint8, clamped and rounded, as the SR tables score it."""
    return (image * 255).round().clamp(0, 255).to(torch.uint8)


def _spans(size: int, tile: int) -> Iterator[tuple[int, int]]:
    """Cut an axis into nearly equal spans of at most `tile`, so that no sliver is left."""
    count = -(-size // tile)
    edges = [index * size // count for index in range(count + 1)]
    return itertools.pairwise(edges)
