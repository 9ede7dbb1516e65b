"""`prepare` killed at random ends in the bytes of one left alone.

python -m bench.soak_store [KILLS]
"""

import collections
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from eco_fast.data.folders import builtin_images
from eco_fast.data.images import read_image

IMAGES, SIDE = 400, 200


def draw(folder: Path) -> None:
    """Noisy sub-images, whose decoding takes a few seconds."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    photo = read_image(builtin_images("train")[0][1])[:SIDE, :SIDE].astype(int)
    for index in range(IMAGES):
        noisy = np.clip(photo + generator.integers(-9, 10, photo.shape), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{index:03}.png")


def start(folder: Path, store: str) -> subprocess.Popen[bytes]:
    """`prepare` with a journal line for each image and two processes."""
    code = (
        "import sys; from pathlib import Path; from eco_fast.data import prepare, store_writer;"
        "store_writer.JOURNAL_SECONDS = 0.02; prepare.WORKER_BYTES = 1;"
        "print('ready', flush=True);"
        "prepare.prepare(['set'], Path(sys.argv[1]), workers=2)"
    )
    return subprocess.Popen([sys.executable, "-c", code, store], cwd=folder, stdout=subprocess.PIPE)


def files(store: Path) -> dict[str, bytes]:
    """Every file, without when the packs were written."""
    return {
        path.name: re.sub(rb'"written": ".*"', b"", path.read_bytes()) for path in store.rglob("*") if path.is_file()
    }


def kill(folder: Path, kills: int) -> None:
    """Kill `prepare` at random moments, then let it end."""
    with start(folder, "whole") as run:
        assert run.stdout is not None
        run.stdout.readline()
        began = time.perf_counter()
        run.communicate()
        whole = time.perf_counter() - began
    counts: collections.Counter[str] = collections.Counter()
    moments = random.Random(0)  # noqa: S311 - no secret
    for number in range(kills):
        store = folder / f"killed-{number}"
        for _ in range(2):
            with start(folder, store.name) as run:
                assert run.stdout is not None
                run.stdout.readline()
                time.sleep(moments.uniform(0, whole))
                run.send_signal(signal.SIGKILL)
            counts["killed" if run.returncode == -signal.SIGKILL else "had ended"] += 1
        with start(folder, store.name) as run:
            run.communicate()
        assert run.returncode == 0
        assert files(store) == files(folder / "whole"), store
    print(f"{kills} stores of {IMAGES} images equal one left alone, byte for byte: {dict(counts)}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        draw(Path(name) / "set")
        kill(Path(name), int(sys.argv[1]) if len(sys.argv) > 1 else 20)
