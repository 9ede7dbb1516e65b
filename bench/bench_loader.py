"""Patches per second of every way to load training pairs, in one run.

    OMP_NUM_THREADS=1 pytest bench/bench_loader.py -s

A pair is a 96x96 HR patch and its 48x48 LR patch in a random orientation, from 480x480 sub-images, as batches of 16 and
128. All but the last two end with both: with the loaders, LR is made in the loop, by the op that training uses or,
where it says so, in DALI's graph. `crops` is the limit: bare memory-mapped crops, copied into a batch, and nothing
else. The page cache is warm; Pillow gets two workers.
"""

import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from eco_fast_kernels import margin_of
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch.utils.data import DataLoader

from eco_fast.config import Config, Data, Objective, Scale, Train
from eco_fast.data.encoded import EncodedImages
from eco_fast.data.folders import find_images
from eco_fast.data.loader import Loader, PlainLoader, cut_crop
from eco_fast.data.store import Store
from eco_fast.training.bench.images import SUB_IMAGE, SubImages, sub_images
from eco_fast.training.step import network_input
from tests.helpers import write_store

dali_loader = pytest.importorskip(
    "eco_fast.data.dali_loader", reason="DALI is not installed: pip install 'eco-fast[dali]'"
)

PATCH = 48
SCALE: Scale = 2
SECONDS = 1.0  # of each measurement
ROUNDS = 3
Fetch = Callable[[], int]
"""Loads one batch and returns its samples."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    for name in ("png", "jpg"):
        (folder / name).mkdir()
    images = list(sub_images(64, np.random.default_rng(0)))
    for index, pixels in enumerate(images):
        image = Image.fromarray(pixels)
        image.save(folder / "png" / f"{index}.png", compress_level=3)
        image.save(folder / "jpg" / f"{index}.jpg", quality=95)
    write_store(folder / "store", {f"hr/{index}.png": pixels for index, pixels in enumerate(images)})
    return folder


def fetches(way: str, folder: Path, batch: int) -> Iterator[Fetch]:
    """A way of loading, ready to fetch batches; ends what it started when it is closed."""
    store = Store(folder / "store")
    if way == "PIL PNG DataLoader":
        dataset = SubImages([folder / "png"], SCALE, PATCH)
        endless = iter(DataLoader(dataset, batch_size=batch, num_workers=2))
        yield lambda: len(next(endless)[0])
        return
    if way == "crops":
        yield _bare(store.images, batch)
        return
    config = Config(
        scale=SCALE,
        data=Data(patch=PATCH, downsample="dali" if way.endswith("LR in DALI") else "kernel"),
        objective=Objective(name="vanilla"),
        train=Train(batch_size=batch, steps=10_000_000),
    )
    made: Loader[Any]
    if way == "plain":
        made = PlainLoader(config, store, None)
    elif way.startswith("encoded"):
        suffix = way.removeprefix("encoded ").lower()
        made = dali_loader.DaliLoader(config, EncodedImages(find_images([folder / suffix])), None)
    else:
        made = dali_loader.DaliLoader(config, store, None)
    with made as loader:
        if way.endswith("without LR"):
            yield lambda: len(next(loader).samples.transposed)
            return
        yield lambda: len(network_input(next(loader).samples, config.scale, config.data))


def _bare(images: Any, batch: int) -> Fetch:
    generator = np.random.default_rng(0)
    margin, inner = margin_of(SCALE), SCALE * PATCH
    out = np.empty((batch, inner + 2 * margin, inner + 2 * margin, 3), dtype=np.uint8)

    def fetch() -> int:
        places = generator.integers(margin, SUB_IMAGE - inner - margin, (batch, 2)).tolist()
        for index, (top, left) in enumerate(places):
            out[index] = cut_crop(images[index % len(images)], top, left, inner, margin, SCALE)
        return batch

    return fetch


WAYS = (
    "PIL PNG DataLoader",
    "encoded PNG",
    "encoded JPG",
    "plain",
    "packed",
    "packed, LR in DALI",
    "packed, without LR",
    "crops",
)


@pytest.mark.parametrize("batch", [16, 128])
def test_patches_per_second(benchmark: BenchmarkFixture, folder: Path, batch: int) -> None:
    """Every round measures all ways one after the other, so that a change of the machine's mood hits all alike."""
    rates: dict[str, list[float]] = {way: [] for way in WAYS}

    def measured() -> None:
        for way in WAYS:
            generator = fetches(way, folder, batch)
            fetch = next(generator)
            for _ in range(5):  # what was made ahead
                fetch()
            began, samples = time.perf_counter(), 0
            while (elapsed := time.perf_counter() - began) < SECONDS:
                samples += fetch()
            rates[way].append(samples / elapsed)
            generator.close()  # type: ignore[attr-defined]

    benchmark.pedantic(measured, rounds=ROUNDS)
    median = {way: statistics.median(values) for way, values in rates.items()}
    benchmark.extra_info.update(median)
    field = rates["PIL PNG DataLoader"]
    print(f"\nbatch {batch}: median of {ROUNDS}, lowest and highest patches per second")
    for way, values in rates.items():
        ratio = statistics.median(value / habit for value, habit in zip(values, field, strict=True))
        print(f"{way:20} {median[way]:9.0f} ({min(values):.0f} to {max(values):.0f})  {ratio:6.1f}x in the same round")
