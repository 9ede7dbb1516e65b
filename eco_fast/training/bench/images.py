"""What is trained on while it is timed: sub-images of the built-in photographs, or the recipe's own images."""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from eco_fast.config import Config
from eco_fast.data.folders import builtin_images
from eco_fast.data.images import Pixels, read_image
from eco_fast.data.sources import ImageSource
from eco_fast.training.training_data import open_images
from eco_fast.utils.files import write_atomically

SUB_IMAGE = 480  # pixels a side
COUNT = 32


@dataclass(frozen=True)
class BenchImages:
    """The same kind of images, for the trainer and for the field's loop."""

    hr: ImageSource
    sr: ImageSource
    """What stands for the centroids: other images of the same sizes, or `hr` itself. They cost as much to read."""
    folders: tuple[Path, Path]
    """PNG sub-images, of HR and of the centroids."""


def bench_images(recipe: Config, folder: Path) -> BenchImages:
    """Make or open what a recipe is timed on; what an earlier call has made in the folder is taken as it is.

    A recipe that names folders or a store is timed on these, decoded as a training would, and the field's loop on
    sub-images of theirs. Any other is timed on sub-images of the built-in photographs.

    Raises:
        ValueError: the images cannot be used.
    """
    data = recipe.data
    own = [*data.train, *[data.store] * bool(data.store)]
    side = max(SUB_IMAGE, recipe.scale * data.patch)
    if any(not one.startswith("builtin:") for one in own):
        named = hashlib.sha256(json.dumps([own, data.source]).encode()).hexdigest()[:16]
        hr = open_images(data, recipe.scale, folder / named, needs_centroids=False).hr
        folders = folder / f"{named}-{side}" / "hr", folder / f"{named}-{side}" / "sr"
        for kind in folders:
            _write(kind, partial(_cut_from, hr, side))
        return BenchImages(hr, hr, folders)
    folders = folder / f"builtin-{side}" / "hr", folder / f"builtin-{side}" / "sr"
    sources = []
    for seed, kind in enumerate(folders):
        _write(kind, partial(sub_images, COUNT, np.random.default_rng(seed), side))
        here = data.model_copy(update={"train": (str(kind),), "store": ""})
        sources.append(open_images(here, recipe.scale, kind.with_name(f"run-{kind.name}"), needs_centroids=False).hr)
    return BenchImages(sources[0], sources[1], folders)


def sub_images(count: int, generator: np.random.Generator, side: int = SUB_IMAGE) -> list[Pixels]:
    """Square crops of the built-in photographs, with a little noise so that no two are the same.

    Raises:
        ValueError: they are smaller than that.
    """
    photos = [read_image(path) for group in ("train", "test") for _, path in builtin_images(group)]
    photos = [photo for photo in photos if min(photo.shape[:2]) >= side]
    if not photos:
        raise ValueError(
            f"an HR patch of {side}x{side} pixels fits into no built-in photograph; name images with --data.train"
        )
    made = []
    for index in range(count):
        crop = _random_crop(photos[index % len(photos)], side, generator)
        made.append(np.clip(crop + generator.normal(0, 1, crop.shape), 0, 255).astype(np.uint8))
    return made


def _cut_from(source: ImageSource, side: int) -> Iterator[Pixels]:
    """A crop of each of some images, spread over all of them."""
    generator = np.random.default_rng(0)
    for index in np.linspace(0, len(source.entries) - 1, min(COUNT, len(source.entries))).astype(int).tolist():
        image = read_image(source.path(index)) if source.encoded else source.read(index)
        yield _random_crop(image, side, generator)


def _random_crop(image: Pixels, side: int, generator: np.random.Generator) -> Pixels:
    """At most so many pixels a side."""
    top, left = (generator.integers(0, max(size - side, 0) + 1) for size in image.shape[:2])
    return image[top : top + side, left : left + side]


def _write(folder: Path, make: Callable[[], Iterable[Pixels]]) -> None:
    """As PNG files, unless they are there."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for index, image in enumerate(make()):
            save = partial(Image.fromarray(image).save, format="PNG", compress_level=3)
            write_atomically(folder / f"{index}.png", save)


class SubImages(Dataset[tuple[Tensor, ...]]):
    """The field's usual data set: PNG sub-images, each decoded whole for one patch; LR by Pillow.

    Args:
        folders: each with its version of the same sub-images: HR, or HR and the centroids.
        scale: upscaling factor.
        patch: side of an LR patch.
    """

    def __init__(self, folders: Sequence[Path], scale: int, patch: int) -> None:
        self.files = list(zip(*(sorted(folder.iterdir()) for folder in folders), strict=True))
        self.scale, self.patch = scale, patch

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """For each folder the HR patch and its LR patch, float [3, H, W]; the same crop in the same orientation."""
        side = self.scale * self.patch
        where, turn = torch.rand(2).tolist(), list(Image.Transpose)[int(torch.randint(7, ()))]
        made = []
        for path in self.files[index % len(self.files)]:
            with Image.open(path) as image:
                left, top = (int(place * (size - side + 1)) for place, size in zip(where, image.size, strict=True))
                patch = image.convert("RGB").crop((left, top, left + side, top + side)).transpose(turn)
            lr = patch.resize((self.patch, self.patch), Image.Resampling.BICUBIC)
            made += [torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 255 for one in (patch, lr)]
        return tuple(made)
