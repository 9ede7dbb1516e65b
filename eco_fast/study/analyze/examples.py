"""Whole images with their centroids."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from eco_fast.config import Config, Data
from eco_fast.data.folders import find_images
from eco_fast.data.images import Pixels
from eco_fast.data.output_paths import flat_stems
from eco_fast.data.resize import downsample_image, modcrop, read_cropped
from eco_fast.data.store import Store
from eco_fast.inference.upscale import super_resolve
from eco_fast.inference.whole_images import whole_images
from eco_fast.models import load_network_of_scale
from eco_fast.utils.device import pick_device
from eco_fast.utils.progress import track

DEFAULT_COUNT = 4  # images, where none are named


@dataclass(frozen=True)
class Example:
    """An image and its centroid.

    Attributes:
        name: its file name without the suffix, for the result files.
        hr: uint8 [H, W, 3], a multiple of the scale.
        lr: D(hr).
        sr: the centroid, as large as `hr`.
    """

    name: str
    hr: Pixels
    lr: Pixels
    sr: Pixels


def examples(
    config: Config, teacher: Path, sources: Sequence[str], label: str, store: Store | None = None
) -> Iterator[Example]:
    """Images with their centroids, made one by one.

    Args:
        config: the recipe, which says how LR images are made.
        teacher: the teacher's checkpoint.
        sources: folders or files; empty: the first of the recipe's test or validation images, or of the store.
        label: of the progress bar.
        store: the training images.

    Raises:
        ValueError: the teacher or the images are missing or bad; names them.
    """
    scale, device = config.scale, pick_device(config.train.device)
    network = load_network_of_scale(teacher, scale).to(device)
    chosen = choose_images(config.data, sources, store)
    stems = flat_stems(chosen)
    for name, image in track(chosen.items(), description=label):
        hr = read_cropped(image, scale) if isinstance(image, Path) else modcrop(image, scale)
        lr = downsample_image(hr, scale, config.data.rounding)
        with whole_images():
            sr = super_resolve(network, lr, self_ensemble=config.teacher.self_ensemble)
        yield Example(stems[name], hr, lr, sr)


def choose_images(data: Data, sources: Sequence[str], store: Store | None) -> dict[str, Path | Pixels]:
    """The images of `examples`, by name.

    Raises:
        ValueError: a source is missing, or there is none.
    """
    if sources:
        return dict(find_images(sources))
    if named := data.test or data.validation:
        return dict(list(find_images(named).items())[:DEFAULT_COUNT])
    if store is None:
        raise ValueError("the recipe names no test or validation images; name images after it")
    names = [entry.name for entry in store.entries]
    return dict(zip(names[:DEFAULT_COUNT], store.images[:DEFAULT_COUNT], strict=True))
