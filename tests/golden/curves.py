"""Training curves that are kept: `python -m tests.golden.curves` trains them and writes tests/golden/*.json anew.

Every objective x every network x one rank and two, a tiny network on parts of built-in photographs, on the CPU, each
rank with one thread. Of each curve the file has the loss of every step, which as a decimal number is the float32 to the
bit, and the SHA-256 of all that a checkpoint would hold: weights, running average, moments, counters.

The bits depend on the processor, on what torch and the C++ compiler make for it, and on nothing else. So a file says
where it was made. The networks differ in scale, rounding, optimizer and schedule too: together they pass through all.
"""

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from eco_fast import config
from eco_fast.config import Config, Objective
from eco_fast.data.folders import builtin_images
from eco_fast.data.images import Pixels, read_image
from eco_fast.data.open_loader import open_loader
from eco_fast.data.resize import downsample_image
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.utils import distributed
from eco_fast.utils.device import cpp_compiler
from tests.helpers import PROCESSES, become_rank, free_port, leaves, source, upsample_image

FOLDER = Path(__file__).parent
STEPS = 60
WORLDS = (1, 2)
OBJECTIVES: tuple[str, ...] = get_args(Objective.model_fields["name"].annotation)
NETWORKS: dict[str, dict[str, Any]] = {
    "edsr": {
        "scale": 2,
        "model": {"name": "edsr", "features": 8, "blocks": 1},
        "optimizer": {"name": "adam", "learning_rate": 1e-3, "spike_factor": 5.0},
        "train": {"batch_size": 4, "ema_decay": 0.9},
    },
    "edsr_bf16": {
        "scale": 2,
        "model": {"name": "edsr", "features": 8, "blocks": 1},
        "optimizer": {"name": "adam", "learning_rate": 1e-3},
        "train": {"batch_size": 4, "micro_batch": 1, "precision": "bf16"},
    },
    "rcan": {
        "scale": 3,
        "data": {"rounding": "im2double"},
        "model": {"name": "rcan", "features": 8, "groups": 1, "blocks": 1, "reduction": 4},
        "objective": {"loss": "charbonnier"},
        "optimizer": {"name": "lamb", "learning_rate": 1e-2, "clip_value": 0.1, "schedule": "cosine"},
        "train": {"batch_size": 3},
    },
    "rrdb": {
        "scale": 4,
        "data": {"patch": 5},
        "model": {"name": "rrdb", "features": 8, "blocks": 1, "growth": 4},
        "optimizer": {"name": "muon", "learning_rate": 1e-3, "schedule": "step", "step_size": 40},
        "train": {"batch_size": 2},
    },
    "swinir": {
        "scale": 2,
        "data": {"noise_sigma": 5.0},
        "model": {
            "name": "swinir",
            "features": 8,
            "depths": [2],
            "heads": [2],
            "window": 4,
            "upsampler": "pixelshuffledirect",
        },
        "objective": {"loss": "l2", "alpha": "linear"},
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.01, "warmup_steps": 10},
        "train": {"batch_size": 2},
    },
}
OBJECTIVES_OF = {network: ("eco",) if network == "edsr_bf16" else OBJECTIVES for network in NETWORKS}
"""One is enough for the copy of the weights that 16 bits compute with: it does not know the objective."""
CURVES = [(network, objective) for network, objectives in OBJECTIVES_OF.items() for objective in objectives]
TOLERANCES = {"edsr": 1e-5, "edsr_bf16": 1e-2, "rcan": 1e-5, "rrdb": 2e-3, "swinir": 2e-3}
"""Relative, of a loss at any step, where the conditions are others. With AVX2 and with SSE4.1 instead of AVX-512 it
differs by up to 3e-7; where the sign of an error, or of what LeakyReLU is given, turns with a rounding, by 5e-4."""


class Curve(NamedTuple):
    """What is kept of a training."""

    losses: list[float]
    """Of the global batch, at every step."""
    state: str
    """SHA-256 of everything that a checkpoint holds."""


def conditions() -> dict[str, str]:
    """What decides the bits, beside the code."""
    compiler = cpp_compiler()
    asked = [compiler, "--version"] if compiler else ["echo", "none"]
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    return {
        # the name alone is that of many processors: of a virtual machine it may be "AMD EPYC"
        "processor": ", ".join(f"{name} {facts.get(name)}" for name in ("model name", "cpu family", "model")),
        "caches": ", ".join(path.read_text(encoding="ascii").strip() for path in caches),  # oneDNN's blocks fit them
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "compiler": subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()[0],
    }


def recipe(network: str, objective: str, changes: Mapping[str, Any] | None = None) -> Config:
    """The recipe of a curve, with other values of some keys."""
    values = {section: dict(keys) if isinstance(keys, dict) else keys for section, keys in NETWORKS[network].items()}
    values["data"] = {"patch": 8, "loader": "plain", **values.get("data", {})}
    values["objective"] = {**values.get("objective", {}), "name": objective}
    values["train"] |= {"steps": STEPS, "log_every": STEPS, "compile": False, "device": "cpu"}
    return config.changed(config.validate(values, network), dict(changes or {}), network)


@cache
def photos(scale: int) -> tuple[list[Pixels], list[Pixels]]:
    """Parts of photographs, and centroids that no rounding reaches: MATLAB's bicubic interpolation of their LR."""
    hr = [
        read_image(path)[200 : 200 + 20 * scale, 100 : 100 + 24 * scale]
        for name, path in builtin_images("train")
        if Path(name).name in ("motorcycle_left.png", "rocket.jpg", "ihc.png")
    ]
    return hr, [upsample_image(downsample_image(image, scale), scale) for image in hr]


def train(made: Config) -> Curve:
    """The training itself, without a run folder. All ranks call it."""
    torch.set_num_threads(1)
    hr, sr = photos(made.scale)
    used = source(sr) if made.needs_centroids else None
    state = TrainingState(made, "cpu", None, "golden")
    with open_loader(made, source(hr), used, 0, "cpu", room=0, label="golden") as loader:
        step = TrainStep(state, loader.planner.count)
        losses = [step(batch).item() for batch in loader]
    digests = distributed.all_gather(digest(state.state_dict()))
    assert len(set(digests)) == 1, "the ranks hold different weights"
    return Curve(losses, digests[0])


def digest(state: dict[str, Any]) -> str:
    """Of every value in a training state, in order; tensors by dtype, shape and bytes."""
    made = hashlib.sha256()
    for leaf in leaves(state):
        if isinstance(leaf, Tensor):
            made.update(f"{leaf.dtype} {tuple(leaf.shape)} ".encode() + leaf.contiguous().numpy().tobytes())
        else:
            made.update(repr(leaf).encode())
    return made.hexdigest()


def name_of(network: str, objective: str, world: int) -> str:
    """A curve's name."""
    return f"{network} {objective} {world}"


def train_all() -> dict[str, Curve]:
    """Every curve by its name, by two processes: each trains half of those of one rank, then both train the others."""
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, f"{rank}.json") for rank in (0, 1)]
        ranks = [PROCESSES.Process(target=_rank, args=(file, rank, port)) for rank, file in enumerate(files)]
        try:
            for rank in ranks:
                rank.start()
            for rank in ranks:
                rank.join()
                assert rank.exitcode == 0
        finally:
            for rank in ranks:
                rank.kill()
        made = {name: Curve(*values) for file in files for name, values in json.loads(file.read_text("utf-8")).items()}
    return {name: made[name] for name in sorted(made)}


def _rank(file: Path, rank: int, port: int) -> None:
    curves = {name_of(*curve, 1): train(recipe(*curve)) for curve in CURVES[rank::2]}
    become_rank(rank, 2, port)
    with distributed.process_group(timeout=1800):
        curves |= {name_of(*curve, 2): train(recipe(*curve)) for curve in CURVES}
    file.write_text(json.dumps(curves), encoding="utf-8")


def kept(network: str) -> tuple[dict[str, str], dict[str, Curve]]:
    """Where a network's file was made, and its curves by their names."""
    file = json.loads((FOLDER / f"{network}.json").read_text(encoding="utf-8"))
    return file["made on"], {name: Curve(**curve) for name, curve in file["curves"].items()}


def write(curves: Mapping[str, Curve]) -> None:
    """A file per network, with a line per curve."""
    for network in NETWORKS:
        its = {name: curve for name, curve in curves.items() if name.split()[0] == network}
        lines = [f"  {json.dumps(name)}: {json.dumps(curve._asdict())}" for name, curve in its.items()]
        text = f'{{"made on": {json.dumps(conditions())},\n "curves": {{\n' + ",\n".join(lines) + "\n}}\n"
        (FOLDER / f"{network}.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(train_all())
