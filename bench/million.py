"""A store of a million crops against one of 800: opening, memory, maps, the first step, and every later one.

python -m bench.million [FOLDER]

The pixels are holes of sparse files (77 GB that take a few MB), so reading them costs no disk: what is measured is what
a training pays for the number of images. Each store has a process of its own, turn by turn; medians of the turns. The
network is tiny, so that the loader shows.
"""

import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from eco_fast import config
from eco_fast.data.packs import pack_file
from eco_fast.data.store import Store
from eco_fast.data.store_writer import Wanted, Writer

COUNTS = (800, 1_000_000)
SIDE = 160
TURNS, STEPS = 3, 60
RECIPE = """
extends = "quickstart"
[data]
train = []
validation = []
test = []
patch = 24
store = "STORE"
loader = "plain"
[model]
features = 8
blocks = 1
[objective]
name = "vanilla"
[train]
steps = 1000
device = "cpu"
compile = false
"""


def write_sparse(folder: Path, count: int) -> None:
    """A store of black crops, all of them holes."""
    size = 3 * SIDE**2
    wanted = [
        Wanted(name=f"crops/{index // 1000:04}/{index:07}.png", size=size, origin="", stamp="0 0")
        for index in range(count)
    ]
    with Writer(folder, {"kind": "hr"}) as writer:
        writer.plan(wanted)
        rows = writer.rows
        rows["height"] = rows["width"] = SIDE
        rows["sha256"] = np.frombuffer(hashlib.sha256(bytes(size)).digest(), dtype=np.uint8)
        for number in np.unique(rows["pack"]):
            end = int(rows["offset"][rows["pack"] == number].max()) + size
            path = folder / pack_file(int(number))
            path.touch()
            os.truncate(path, end)
        writer.finish()


def resident_mb() -> float:
    """Memory of this process."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGESIZE") / 1e6


def maps() -> int:
    """Memory maps of this process."""
    return len(Path("/proc/self/maps").read_text(encoding="ascii").splitlines())


def measure(folder: Path) -> dict[str, float]:
    """Open a store and train on it, in this process."""
    from eco_fast.data.open_loader import open_loader  # noqa: PLC0415 - imports are no part of the memory of a store
    from eco_fast.data.sources import without_small  # noqa: PLC0415
    from eco_fast.training.state import TrainingState  # noqa: PLC0415
    from eco_fast.training.step import TrainStep  # noqa: PLC0415

    (folder / "recipe.toml").write_text(RECIPE.replace("STORE", str(folder)), encoding="utf-8")
    recipe = config.load(str(folder / "recipe.toml"))
    before, maps_before = resident_mb(), maps()
    began = time.perf_counter()
    store = Store(folder)
    opened = time.perf_counter() - began
    memory = resident_mb() - before
    began = time.perf_counter()
    hr = without_small(store, recipe.scale, recipe.data.patch, skip=False)
    state = TrainingState(recipe, "cpu", None, "bench")
    seconds: list[float] = []
    with open_loader(recipe, hr, None, 0, "cpu", room=0, label="bench") as loader:
        step = TrainStep(state, loader.planner.count)
        step(next(loader))
        first = time.perf_counter() - began + opened
        for _ in range(STEPS):
            began = time.perf_counter()
            step(next(loader))
            seconds.append(time.perf_counter() - began)
        plans = time.perf_counter()
        for number in range(200):
            loader.planner.plan(number)
        plans = time.perf_counter() - plans
    return {
        "open, s": opened,
        "memory of the open store, MB": memory,
        "memory of the process after the steps, MB": resident_mb(),
        "maps, over those before": maps() - maps_before,
        "to the end of the first step, s": first,
        "step, ms": statistics.median(seconds) * 1e3,
        "plan of a step, ms": plans / 200 * 1e3,
    }


def main(where: Path) -> None:
    """Measure both stores in turn."""
    print(f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}")
    limit = Path("/proc/sys/vm/max_map_count").read_text(encoding="ascii").strip()
    found: dict[int, list[dict[str, float]]] = {count: [] for count in COUNTS}
    for count in COUNTS:
        began = time.perf_counter()
        write_sparse(where / str(count), count)
        print(f"{count:,} images generated in {time.perf_counter() - began:.0f} s")
    for _ in range(TURNS):
        for count in COUNTS:
            command = [sys.executable, "-m", "bench.million", "--measure", str(where / str(count))]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[count].append(json.loads(done.stdout.splitlines()[-1]))
    for key in found[COUNTS[0]][0]:
        few, many = (statistics.median(turn[key] for turn in found[count]) for count in COUNTS)
        print(f"{key:45} {few:12.3f} {many:12.3f}")
    print(f"vm.max_map_count {limit}, load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        print(json.dumps(measure(Path(sys.argv[2]))))
    elif len(sys.argv) > 1:
        main(Path(sys.argv[1]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            main(Path(folder))
