"""What a run depends on besides its recipe, noted at its start and compared whenever it goes on.

Where images and weights lie may differ, and the name of the folder that holds them; what they are may not: other images
are other samples from the next step on, and nothing in the losses would tell.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from eco_fast.data.folders import find_images
from eco_fast.data.images import Pixels
from eco_fast.data.sources import ImageSource
from eco_fast.evaluation.benchmarks import BenchmarkSets
from eco_fast.training.run_folder import PINNED
from eco_fast.utils import distributed
from eco_fast.utils.files import file_stamp, name_damaged, sha256_of, write_json

Contents = Sequence[tuple[str, str]]
"""Names, and what is under them: sizes and SHA-256; in the order in which they are used."""


def pin(folder: Path, kind: str, contents: Contents) -> None:
    """Note what a run depends on, or compare it with what it was at the start.

    Args:
        folder: the run's; this process's alone.
        kind: what the contents are, in the plural.
        contents: all of them.

    Raises:
        ValueError: they have changed, or are others on another rank; names the first difference.
    """
    distributed.on_rank0(lambda: _pin(folder / PINNED, kind, contents))
    _check_equal(kind, contents)


def pin_sets(folder: Path, images: Mapping[str, Pixels], monitored: BenchmarkSets) -> None:
    """`pin` what is scored during the training; a set that is monitored or no longer monitored changes no other."""
    for kind, contents in contents_of_sets(images, monitored).items():
        pin(folder, kind, contents)


def pin_names(folder: Path, sources: Sequence[str]) -> None:
    """`pin` which training images there are, before they change a store."""
    pin(folder, "names of the training images", [(name, "") for name in find_images(sources)])


def read_pinned(folder: Path) -> dict[str, Contents]:
    """What a run has noted, by kind; nothing where it has noted nothing.

    Raises:
        ValueError: the file is damaged; names it.
    """
    path = folder / PINNED
    with name_damaged(path):
        noted: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        return {kind: [(str(name), str(what)) for name, what in contents] for kind, contents in noted.items()}


def contents_of_file(path: Path) -> Contents:
    """The content of one file, whatever its name."""
    return [("the file", sha256_of(path))]


def contents_of(source: ImageSource) -> Contents:
    """The contents of the training images or their centroids."""
    return [
        (entry.name, f"{entry.height}x{entry.width} {_sha256(source, index)}")
        for index, entry in enumerate(source.entries)
    ]


def _sha256(source: ImageSource, index: int) -> str:
    if source.encoded:
        path = source.path(index)
        return _sha256_of_file(path, file_stamp(path))
    known = getattr(source.entries[index], "sha256", None)  # a store knows
    return known or hashlib.sha256(source.read(index).tobytes()).hexdigest()


@cache
def _sha256_of_file(path: Path, _stamp: str) -> str:
    return sha256_of(path)


def contents_of_sets(images: Mapping[str, Pixels], monitored: BenchmarkSets) -> dict[str, Contents]:
    """What is scored during a training, by kind."""
    sets = {"validation images": images} | {f"monitored images of {name}": one for name, one in monitored.items()}
    return {kind: _scored(one) for kind, one in sets.items()}


def _scored(images: Mapping[str, Pixels]) -> Contents:
    return [
        (name, f"{image.shape[0]}x{image.shape[1]} {hashlib.sha256(image.tobytes()).hexdigest()}")
        for name, image in images.items()
    ]


def _pin(path: Path, kind: str, contents: Contents) -> None:
    pinned = read_pinned(path.parent)
    if kind not in pinned:
        write_json(path, {**pinned, kind: contents})
    elif change := first_change(pinned[kind], contents):
        raise ValueError(
            f"{path.parent}: the {kind} have changed since the run began: {change}; "
            "restore them, or begin a new run with --run"
        )


def _check_equal(kind: str, contents: Contents) -> None:
    """Compare what this rank sees with what rank 0 sees, perhaps on another machine."""
    if distributed.world_size() == 1:
        return
    own = [(name_in_source(name), what) for name, what in contents]
    if len(set(distributed.all_gather(hashlib.sha256(json.dumps(own).encode()).hexdigest()))) == 1:
        return
    first = distributed.on_rank0(lambda: list(contents))
    if change := first_change(first, contents, "there", "here"):
        raise ValueError(f"the {kind} are not those of rank 0: {change}; let all machines have the same")
    distributed.all_gather(None)  # those who differ say so


def first_change(before: Contents, now: Contents, then: str = "then", here: str = "now") -> str | None:
    """The first difference, in words."""
    if [(name_in_source(name), what) for name, what in before] == [(name_in_source(name), what) for name, what in now]:
        return None
    old, new = ({name_in_source(name): what for name, what in one} for one in (before, now))
    counts = f"{len(before)} {then}, {len(now)} {here}"
    for name, what in now:
        if name_in_source(name) not in old:
            return f"{name} is new ({counts})"
        if old[name_in_source(name)] != what:
            return f"{name} is another ({counts})"
    for name, _ in before:
        if name_in_source(name) not in new:
            return f"{name} is missing ({counts})"
    return f"they come in another order ({counts})"


def name_in_source(name: str) -> str:
    """A name without the folder that was named as the source."""
    return name.partition("/")[2] or name
