"""One wrong bit anywhere in a store or a checkpoint is found before it is used, or changes nothing.

python -m bench.soak_flips [FLIPS] [SEED]

Stores of images and of centroids, weights and training states, all of one real run. Files keep their times, as they do
where a disk rots.
"""

import io
import os
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numpy as np

from eco_fast import config
from eco_fast.data.store import MANIFEST, Store
from eco_fast.models import load_network
from eco_fast.training.checkpoints import read_whole_state
from eco_fast.training.pipeline import run_recipe
from eco_fast.utils.content_hash import content_hash

RECIPE = """
[data]
train = ["builtin:validation"]
patch = 8
loader = "plain"
[model]
features = 8
blocks = 1
[teacher]
steps = 2
[train]
steps = 4
batch_size = 2
device = "cpu"
compile = false
"""


def train(folder: Path) -> None:
    """A run with a teacher, and centroids."""
    recipe = folder / "recipe.toml"
    recipe.write_text(RECIPE, encoding="utf-8")
    with redirect_stdout(io.StringIO()):
        run_recipe(config.load(str(recipe)), folder / "run")


def store_content(store: Path) -> Any:
    """All that is read of a store."""
    opened = Store(store)
    pixels = [np.array(image) for image in opened.images]
    return opened.attributes, list(opened.entries), [(one.shape, one.tobytes()) for one in pixels]


def network_content(path: Path) -> Any:
    """All that is read of a weights file."""
    network = load_network(path)
    return network.architecture, network.scale, network.hyperparameters, content_hash(network.state_dict())


def state_content(path: Path) -> Any:
    """All that is read of a training state."""
    return content_hash(read_whole_state(path))


def targets(run: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """For each kind of file, one of them and what reads it."""
    store, checkpoints = run / "store", run / "checkpoints"
    (centroids,) = (store / "centroids").iterdir()
    found: dict[str, tuple[Path, Callable[[], Any]]] = {}
    for kind, folder in (("images", store), ("centroids", centroids)):
        for pattern in (MANIFEST, "*.table", "packs/*.pack"):
            (path,) = folder.glob(pattern)
            found[f"{path.suffix[1:]} of {kind}"] = (path, lambda folder=folder: store_content(folder))  # type: ignore[misc]
    weights, state = checkpoints / "last.safetensors", checkpoints / "last.state.pt"
    found["weights"] = (weights, lambda: network_content(weights))
    found["training state"] = (state, lambda: state_content(state))
    return found


def turn(path: Path, bit: int) -> None:
    """Turn one bit over; the file keeps its times."""
    status = path.stat()
    with path.open("rb+") as file:
        file.seek(bit // 8)
        (byte,) = file.read(1)
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def judge(path: Path, read: Callable[[], Any], expected: Any) -> str:
    """What becomes of a file with a wrong bit."""
    try:
        content = read()
    except ValueError as error:
        return "found" if path.name in str(error) and "\n" not in str(error) else f"WRONG: says {error}"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is wrong
        return f"WRONG: {type(error).__name__}: {error}"
    return "harmless" if content == expected else "WRONG: used"


def main(flips: int, seed: int) -> None:
    """Turn so many bits over, each in a file that is whole but for it."""
    bits = random.Random(seed)  # noqa: S311 - no secret
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        train(Path(name))
        files = targets(Path(name, "run"))
        contents = {kind: read() for kind, (_, read) in files.items()}
        for number in range(flips):
            kind = list(files)[number % len(files)]
            path, read = files[kind]
            bit = bits.randrange(8 * path.stat().st_size)
            turn(path, bit)
            result = judge(path, read, contents[kind])
            turn(path, bit)
            results[f"{kind}: {result.partition(':')[0]}"] += 1
            if result.startswith("WRONG"):
                print(f"bit {bit} of {path.name}: {result}", flush=True)
    for what, count in sorted(results.items()):
        print(f"{count:5} {what}")
    wrong = sum(count for what, count in results.items() if what.endswith("WRONG"))
    print(f"{flips} wrong bits of seed {seed}: {wrong} of them used, or badly told of")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*[int(value) for value in (*sys.argv[1:], *("1000", "0")[len(sys.argv) - 1 :])])
