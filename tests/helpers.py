"""What several test modules share."""

import multiprocessing
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Self

import numpy as np
import pytest
from eco_fast_kernels import Rounding
from torch import Tensor

from eco_fast.cli.main import main
from eco_fast.config import Config
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.loader import Loader, PlainLoader
from eco_fast.data.resize import to_tensor, upsample
from eco_fast.data.sources import ImageEntry, ImageSource
from eco_fast.data.store import Store
from eco_fast.data.store_writer import Wanted, Writer
from eco_fast.evaluation.metrics import Scores, read_scores, score
from eco_fast.inference.centroids import make_centroids
from eco_fast.models import load_network_of_scale

HANGS = 1800.0
"""Seconds after which something hangs: no test depends on how fast the machine is."""
PROCESSES = multiprocessing.get_context("forkserver")
"""Processes that have imported what takes seconds in each rank."""
PROCESSES.set_forkserver_preload(["eco_fast.cli.main", "eco_fast.training.pipeline", "torch._dynamo"])
READS_THE_DEVICE = ("_local_scalar_dense", "item", "nonzero", "equal", "is_nonzero", "masked_select", "unique")
"""Operators that need a value of the device on the host."""


def free_port() -> int:
    """One that nobody listens at."""
    with socket.socket() as free:
        free.bind(("", 0))
        return int(free.getsockname()[1])


def become_rank(rank: int, world: int, port: int, said: Sequence[Path] = ()) -> None:
    """Set what torchrun tells a rank; what it says from here on goes to these files, output and errors."""
    os.environ |= {"WORLD_SIZE": str(world), "RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    for stream, path in enumerate(said, start=1):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)


def assert_equal_fields(first: object, second: object, where: str = "") -> None:
    """Two NamedTuples or dataclasses are equal field by field: tensors and arrays in shape, dtype and every value."""
    assert type(first) is type(second), where
    fields, others = fields_of(first), fields_of(second)
    assert fields.keys() == others.keys(), where
    for name, value in fields.items():
        place, other = f"{where} {name}".lstrip(), others[name]
        if isinstance(value, Tensor | np.ndarray):
            assert type(value) is type(other), place
            assert (value.dtype, value.shape) == (other.dtype, other.shape), place
            assert np.array_equal(value, other), place
        elif fields_of(value):
            assert_equal_fields(value, other, place)
        else:
            assert value == other, place


def fields_of(value: Any) -> Mapping[str, Any]:
    """Names and values of a NamedTuple or dataclass, nothing of anything else."""
    if hasattr(value, "_asdict"):
        return dict(value._asdict())
    return vars(value) if hasattr(value, "__dataclass_fields__") else {}


def wait_until(condition: Callable[[], bool]) -> None:
    """Look again and again whether something has happened."""
    limit = time.monotonic() + HANGS
    while not condition():
        assert time.monotonic() < limit, "it hangs"
        time.sleep(0.001)


def idle(loader: Loader[Any]) -> bool:
    """Whether the loader's thread waits for room in its queue: until a batch is taken it reads no image."""
    assert loader._thread is not None
    assert loader._thread.ident is not None
    if not loader._ready.full():  # asked first: a batch taken just now lets the thread go on from where it waits
        return False
    frame = sys._current_frames()[loader._thread.ident]
    assert frame.f_back is not None
    return (frame.f_code.co_name, frame.f_back.f_code.co_name) == ("wait", "put")


def leaves(value: Any) -> Iterator[Any]:
    """What is in nested lists, tuples and dictionaries, in order."""
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list | tuple) else None
    if children is None:
        yield value
    else:
        for child in children:
            yield from leaves(child)


def oriented(pixels: Pixels, *, flip_rows: bool, flip_columns: bool, transpose: bool) -> Pixels:
    """An image [H, W, 3] as a crop's plan turns it: flips first, then the transposition."""
    pixels = np.flip(pixels, axis=0) if flip_rows else pixels
    pixels = np.flip(pixels, axis=1) if flip_columns else pixels
    return np.swapaxes(pixels, 0, 1) if transpose else pixels


def write_crops_of(photo: Pixels, folder: Path) -> None:
    """Three square images of different sizes to train on."""
    for index, side in enumerate((40, 60, 90)):
        write_png(folder / f"{index}.png", photo[100 : 100 + side, 150 : 150 + side])


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one sentence that a command of eco-fast ends with, exit code 2."""
    capsys.readouterr()
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert said.startswith("eco-fast: "), said
    assert said.count("\n") == 1, said
    return said.removeprefix("eco-fast: ").rstrip()


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


def centroids_of(store: Path, checkpoint: Path, scale: int, **options: Any) -> Path:
    """The folder of a teacher's centroids over a store, made if it is not there."""
    return make_centroids(Store(store), load_network_of_scale(checkpoint, scale), checkpoint, **options).folder


def write_store(folder: Path, images: Mapping[str, Pixels]) -> Store:
    """A store of arrays, by name."""
    with Writer(folder, {"kind": "hr"}) as writer:
        wanted = [
            Wanted(name=name, size=one.nbytes, origin=f"{at:064x}") for at, (name, one) in enumerate(images.items())
        ]
        pixels = list(images.values())
        for index in writer.plan(wanted):
            writer.add(index, pixels[index])
        writer.finish()
    return Store(folder)


def upsample_image(image: Pixels, scale: int, rounding: Rounding = "uint8") -> Pixels:
    """`upsample` of one uint8 [H, W, C] image."""
    return upsample(to_tensor(image)[None], scale, rounding)[0].numpy()


def scores_of(sr: Pixels, hr: Pixels, border: int) -> Scores:
    """All scores of an image."""
    return read_scores({"image": score(to_tensor(sr), to_tensor(hr), border)})["image"]


def write_photos(folder: Path, photo: Pixels, height: int, width: int) -> Path:
    """Four parts of a photograph: two of them in the folder `train`, two in `HR`."""
    for name, top in (("train/a", 50), ("train/b", 120), ("HR/cat", 90), ("HR/eye", 150)):
        write_png(folder / f"{name}.png", photo[top : top + height, 100 : 100 + width])
    return folder
