"""The DALI loader against the plain one, for longer than the tests can afford.

python -m bench.soak_loader bytes      500 batches of 5 and of 16 at every scale, packed and encoded
python -m bench.soak_loader resume     stop at 20 steps, restart there: the following 100 batches
python -m bench.soak_loader memory     resident memory over 5 000 batches
"""

import os
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eco_fast.config import Config, Data, Objective, Scale, Train
from eco_fast.data.encoded import EncodedImages
from eco_fast.data.folders import builtin_images, find_images
from eco_fast.data.images import Pixels, read_image
from tests.helpers import assert_equal_fields, dali_loader, plain_loader

SCALES: tuple[Scale, ...] = (2, 3, 4, 8)


def make_images() -> list[Pixels]:
    """Photographs: two of 2000 pixels, and small ones, so that crops often touch every edge and corner."""
    photos = [read_image(path) for _, path in builtin_images("test")]
    row = np.concatenate([photo[:300, :400] for photo in photos * 2], axis=1)
    small = [row[place : place + 45, 150 * place : 150 * place + 47] for place in range(10)]
    return [row[:45, :2000], np.ascontiguousarray(row[50:93, 350:2350].transpose(1, 0, 2)), *small]


def write_files(folder: Path, images: list[Pixels]) -> EncodedImages:
    folder.mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{index:02}.png")
    return EncodedImages(find_images([folder]))


def recipe(scale: Scale, batch: int, steps: int, objective: Objective) -> Config:
    return Config(
        scale=scale,
        seed=1,
        data=Data(patch=32 // scale),
        objective=objective,
        train=Train(batch_size=batch, steps=steps),
    )


def check_bytes() -> None:
    images = make_images()
    centroids = [(255 - image).astype(np.uint8) for image in images]
    with tempfile.TemporaryDirectory() as folder:
        files = (write_files(Path(folder) / "hr", images), write_files(Path(folder) / "sr", centroids))
        for scale in SCALES:
            for batch in (5, 16):
                config = recipe(scale, batch, 500, Objective())
                edges = set()
                with (
                    plain_loader(config, images, centroids) as plain,
                    dali_loader(config, images, centroids) as packed,
                    dali_loader(config, *files) as encoded,
                ):
                    for first, second, third in zip(plain, packed, encoded, strict=True):
                        assert_equal_fields(first, second)
                        assert_equal_fields(first, third)
                        plan = plain.planner.plan(first.step).crops
                        for image, top, left in zip(plan.image, plan.top, plan.left, strict=True):
                            ends = np.array(images[image].shape[:2]) // scale * scale - scale * config.data.patch
                            edges.add((int(top == 0) - int(top == ends[0]), int(left == 0) - int(left == ends[1])))
                print(f"x{scale}, batch {batch}: 500 batches equal, {len(edges)} of 9 places at edges", flush=True)


def check_resume() -> None:
    images = make_images()
    centroids = [(255 - image).astype(np.uint8) for image in images]
    config = recipe(2, 16, 400, Objective())
    plain = plain_loader(config, images, centroids)
    for start in range(0, 300, 15):
        with dali_loader(config, images, centroids, start) as loader:
            for batch, _ in zip(loader, range(100), strict=False):
                assert_equal_fields(plain.batch_at(batch.step), batch)
    print("20 restarts: the following 100 batches are equal")
    for world in (1, 2, 3):
        ranks = [dali_loader(config, images, centroids, rank=rank, world_size=world) for rank in range(world)]
        for step, *parts in zip(range(400), *ranks, strict=True):
            whole = plain.batch_at(step)
            for name in ("hr", "sr"):
                expected = getattr(whole.samples, name)
                if expected is not None and not torch.equal(
                    torch.cat([getattr(part.samples, name) for part in parts]), expected
                ):
                    raise SystemExit(f"the union of {world} ranks differs at step {step}")
        for rank in ranks:
            rank.__exit__(None, None, None)
        print(f"{world} ranks: 400 global batches are equal", flush=True)


def check_memory() -> None:
    images = make_images()
    with dali_loader(recipe(2, 16, 5200, Objective(name="vanilla")), images, None) as loader:
        for batch in loader:
            if batch.step == 199:
                begin = _resident_mb()
        grown = _resident_mb() - begin
        before = time.perf_counter()
    print(f"5 000 batches: resident memory grew by {grown:.1f} MB; closed in {time.perf_counter() - before:.2f} s")


def _resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


if __name__ == "__main__":
    {"bytes": check_bytes, "resume": check_resume, "memory": check_memory}[sys.argv[1]]()
