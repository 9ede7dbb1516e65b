"""Sets of HR images that networks are scored on: validation, test, and the ones that a training watches."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from eco_fast.data.folders import find_images
from eco_fast.data.images import Pixels, read_image
from eco_fast.evaluation.metrics import WINDOW

BenchmarkSets = Mapping[str, Mapping[str, Pixels]]
"""By the name of the set, its HR images by name."""


def read_sets(sources: Sequence[str], scale: int) -> dict[str, dict[str, Pixels]]:
    """Each source as a set of its own.

    Raises:
        ValueError: two sources have the same name, or as `read_images`.
    """
    sets: dict[str, dict[str, Pixels]] = {}
    for source in sources:
        if (name := set_name(source)) in sets:
            raise ValueError(f"{source}: another set is called {name} already; rename its folder")
        sets[name] = read_images([source], scale)
    return sets


def images_by_set(sources: Sequence[str]) -> dict[str, list[str]]:
    """The names of the images, as `read_images` has them, by the sets that they are from.

    Raises:
        ValueError: as `find_images`.
    """
    sets: dict[str, list[str]] = {}
    for source in sources:
        sets.setdefault(set_name(source), []).extend(find_images([source]))
    return sets


def set_name(source: str) -> str:
    """What a source is called in tables: its last folder that is not merely HR."""
    parts = [part for part in Path(source).parts if part.upper() != "HR"]
    return Path(parts[-1]).stem if parts else source


def read_images(sources: Sequence[str], scale: int) -> dict[str, Pixels]:
    """Decode the validation or test images, which are few.

    Raises:
        ValueError: an image is too small to be scored; names it.
    """
    images = {name: read_image(path) for name, path in find_images(sources).items()} if sources else {}
    least = (-(-WINDOW // scale) + 2) * scale  # the window of SSIM inside the border, after the crop to a multiple
    for name, image in images.items():
        if min(image.shape[:2]) < least:
            raise ValueError(
                f"{name} is {image.shape[1]}x{image.shape[0]} pixels, but an image that is scored at x{scale} needs "
                f"at least {least} a side; remove it from data.validation and data.test"
            )
    return images
