"""Loaders over arrays, for tests that need no store, and the comparison of their batches."""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import torch

from eco_fast.config import Config
from eco_fast.data.batch import Batch
from eco_fast.data.images import Pixels
from eco_fast.data.loader import PlainLoader
from eco_fast.data.sources import ImageEntry, ImageSource
from eco_fast.data.store import Store
from eco_fast.inference.centroids import make_centroids
from eco_fast.models import load_network_of_scale

Images = Sequence[Pixels] | ImageSource


class InMemory:
    """Arrays as an `ImageSource`."""

    encoded = False

    def __init__(self, images: Sequence[Pixels]) -> None:
        self.images = images
        self.entries: list[ImageEntry] = [
            SimpleNamespace(name=f"{index}.png", height=image.shape[0], width=image.shape[1])
            for index, image in enumerate(images)
        ]

    def path(self, index: int) -> Path:
        return Path(self.entries[index].name)

    def read(self, index: int) -> Pixels:
        return self.images[index]

    def select(self, names: Sequence[str]) -> Self:
        return type(self)([self.images[int(Path(name).stem)] for name in names])


def source(images: Images) -> ImageSource:
    """A list of arrays as a source; a source as it is."""
    return InMemory(images) if isinstance(images, Sequence) else images


def plain_loader(config: Config, hr: Images, sr: Images | None, *more: Any, **options: Any) -> PlainLoader:
    return PlainLoader(config, source(hr), None if sr is None else source(sr), *more, **options)


def dali_loader(config: Config, hr: Images, sr: Images | None, *more: Any, **options: Any) -> Any:
    from eco_fast.data.dali_loader import DaliLoader  # DALI is optional

    return DaliLoader(config, source(hr), None if sr is None else source(sr), *more, **options)


def assert_equal_batches(first: Batch, second: Batch) -> None:
    """Equal steps, and samples of equal dtypes and values."""
    assert first.step == second.step
    for name, one, other in zip(first.samples._fields, first.samples, second.samples, strict=True):
        assert (one is None) == (other is None), name
        if one is not None and other is not None:
            assert one.dtype == other.dtype, name
            assert torch.equal(one, other), name


def centroids_of(store: Path, checkpoint: Path, scale: int, **options: Any) -> Path:
    """The folder of a teacher's centroids over a store, made if it is not there."""
    return make_centroids(Store(store), load_network_of_scale(checkpoint, scale), checkpoint, **options).folder
