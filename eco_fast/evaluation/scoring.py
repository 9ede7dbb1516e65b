"""Networks scored on HR images. Everything happens on one device, which is waited for once, after the last image."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import zip_longest

import torch
from eco_fast_kernels import Rounding, imresize
from torch import Tensor

from eco_fast.data.images import Pixels
from eco_fast.data.noise import NOISE_DRAWS, noisy_images
from eco_fast.data.resize import modcrop, to_tensor, upsample
from eco_fast.evaluation.metrics import Scores, read_scores, score
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.inference.whole_images import largest_tile, ready, whole_images
from eco_fast.models import Network
from eco_fast.utils import distributed


@dataclass(frozen=True)
class ImagePair:
    """An HR image and what networks are given of it, on a device."""

    hr: Tensor
    """uint8 [H, W, 3], cropped to a multiple of the scale."""
    lr: tuple[Tensor, ...]
    """D of it, uint8 [H/scale, W/scale, 3]; with noise on it, as often as there are draws."""


def image_pair(
    hr: Pixels,
    scale: int,
    rounding: Rounding = "uint8",
    *,
    noise_sigma: float = 0.0,
    draws: int = NOISE_DRAWS,
    device: str | torch.device = "cpu",
) -> ImagePair:
    """The pair of an HR image: uint8 [H, W, 3]; `noise_sigma` is in grey levels.

    Raises:
        ValueError: the image is smaller than the scale.
    """
    image = to_tensor(modcrop(hr, scale), device)
    (lr,) = imresize(image[None], scale, rounding)
    return ImagePair(image, tuple(noisy_images(lr, noise_sigma, draws)))


def pairs_of(
    images: Mapping[str, Pixels],
    scale: int,
    rounding: Rounding = "uint8",
    *,
    noise_sigma: float = 0.0,
    draws: int = NOISE_DRAWS,
    device: str | torch.device = "cpu",
) -> Iterator[tuple[str, ImagePair]]:
    """The names and the pairs, one by one, of this rank's share of the images; see `image_pair`."""
    for name in distributed.shard(images):
        yield name, image_pair(images[name], scale, rounding, noise_sigma=noise_sigma, draws=draws, device=device)


def score_network(
    network: Network,
    pairs: Iterable[tuple[str, ImagePair]],
    *,
    rgb: bool = True,
    arithmetic: AbstractContextManager[None] | None = None,
) -> dict[str, Scores]:
    """Score a network on the pairs of all ranks; an image's scores are the means over its draws of noise.

    Args:
        network: on the device of the pairs.
        pairs: this rank's, by name.
        rgb: also over the three colours.
        arithmetic: the scope that the network runs in; None: true float32, `whole_images()`.
    """
    with arithmetic or whole_images():
        tile = largest_tile(ready(network))
        return _score_all(pairs, lambda lr: upscale_tiled(network, lr, tile=tile), network.scale, rgb=rgb)


def score_bicubic(
    pairs: Iterable[tuple[str, ImagePair]], scale: int, rounding: Rounding = "uint8"
) -> dict[str, Scores]:
    """The tables' baseline: LR upscaled by MATLAB's bicubic; shared and averaged as by `score_network`."""
    return _score_all(pairs, lambda lr: upsample(lr[None], scale, rounding)[0], scale, rgb=True)


def mean_score(images: Iterable[Tensor], hr: Tensor, border: int, *, rgb: bool = True) -> Tensor:
    """The mean `score` of several SR images of one HR image, on their device."""
    return torch.stack([score(sr, hr, border, rgb=rgb) for sr in images]).mean(dim=0)


def gather(scores: Mapping[str, Scores]) -> dict[str, Scores]:
    """What all ranks have scored, in the order of the images that they share."""
    rounds = zip_longest(*(part.items() for part in distributed.all_gather(dict(scores))))
    return {name: one for items in rounds for name, one in filter(None, items)}


def _score_all(
    pairs: Iterable[tuple[str, ImagePair]], upscale: Callable[[Tensor], Tensor], scale: int, *, rgb: bool
) -> dict[str, Scores]:
    scores = {name: mean_score(map(upscale, pair.lr), pair.hr, scale, rgb=rgb) for name, pair in pairs}
    return gather(read_scores(scores))
