"""Tampering with finished runs: `eco-fast verify` proves those that are left alone, and finds each of the others.

python -m bench.tamper

What is done to them is in `tampering.py`.
"""

import contextlib
import io
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from bench.tampering import RUN, TAMPERINGS
from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.folders import builtin_images
from eco_fast.data.images import read_image, write_png
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.verify.certificate import certificate_path, read_certificate
from eco_fast.training.verify.verify import verify

COMMON: dict[str, Any] = {
    "data.train": ["images"],
    "data.validation": ["validation"],
    "data.patch": 8,
    "teacher.checkpoint": "teacher.safetensors",
    "optimizer.learning_rate": 1e-3,
    "optimizer.schedule": "cosine",
    "train.steps": 6,
    "train.batch_size": 2,
    "train.log_every": 1,
    "train.validate_every": 2,
    "train.checkpoint_every": 2,
    "train.keep_checkpoints": 9,
    "train.ema_decay": 0.9,
    "train.trackers": [],
    "train.compile": False,
    "train.device": "cpu",
}
EDSR_ECO: dict[str, Any] = {"model.features": 8, "model.blocks": 1, "objective.name": "eco"}
SWINIR: dict[str, Any] = {
    "model": {"name": "swinir", "features": 8, "depths": [1], "heads": [2], "window": 4, "patch": 8},
    "objective.name": "vanilla",
}
UNTOUCHED: dict[str, dict[str, Any]] = {
    "EDSR, eco": EDSR_ECO,
    "EDSR, vanilla, its own micro-batch": {**EDSR_ECO, "objective.name": "vanilla", "train.micro_batch": "auto"},
    "EDSR, eco, teacher and baseline": {
        **EDSR_ECO,
        "teacher.checkpoint": "self",
        "teacher.steps": 3,
        "train.baseline": True,
    },
    "RCAN, vanilla": {
        "model": {"name": "rcan", "features": 8, "groups": 1, "blocks": 1, "reduction": 4},
        "objective.name": "vanilla",
        "optimizer.name": "lamb",
    },
    "RCAN, eco": {
        "model": {"name": "rcan", "features": 8, "groups": 1, "blocks": 1, "reduction": 4},
        "objective.alpha_sample": True,
    },
    "SwinIR, vanilla, one checkpoint": {**SWINIR, "train.keep_checkpoints": 1},
    "SwinIR, eco, validated by the clock": {**SWINIR, "objective.name": "eco", "train.validate_every": "50%"},
}
"""Recipes of runs that are left alone, by what they are."""


def make_run(**changes: Any) -> None:
    """Train the run in the current folder, with images and a teacher that are made for it."""
    photo = read_image(dict(builtin_images("test"))["builtin/chelsea.png"])
    for name, top, left in (("images/a", 60, 120), ("images/b", 150, 200), ("validation/eye", 70, 150)):
        write_png(Path(f"{name}.png"), photo[top : top + 40, left : left + 40])
    torch.manual_seed(7)
    save_network(Path("teacher.safetensors"), EDSR(2, 8, 1))
    run_recipe(config.changed(Config(), {**COMMON, **changes}, "bench.tamper"), RUN)


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Work in a folder, and say nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    with contextlib.chdir(folder), contextlib.redirect_stdout(io.StringIO()):
        yield


def verdict(**options: Any) -> tuple[bool, str]:
    """Whether the run in the current folder is proven, and why not."""
    proven = verify(RUN, stretches=None, **options)
    return proven, read_certificate(certificate_path(RUN))["reason"] or ""


def refuted(base: Path, name: str, folder: Path) -> str:
    """What is said of a copy of the run in `base`, tampered with in a new folder; nothing where it is not found."""
    tampering = TAMPERINGS[name]
    shutil.copytree(base, folder)
    with inside(folder):
        tampering.do()
        proven, reason = verdict(released=[Path(one) for one in tampering.released])
    return "" if proven or not reason.startswith(f"student, {tampering.said}") else reason


def main() -> None:
    """All of it."""
    torch.set_num_threads(1)
    wrong = 0
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        for kind, changes in UNTOUCHED.items():
            with inside(root / kind):
                make_run(**changes)
                proven, reason = verdict()
            wrong += not proven
            print(f"{'proven' if proven else 'WRONG'}: {kind} {reason}", flush=True)
        for kind in TAMPERINGS:
            said = refuted(root / next(iter(UNTOUCHED)), kind, root / f"{kind}, tampered")
            wrong += not said
            print(f"{'found' if said else 'WRONG'}: {kind}: {said}", flush=True)
    print(f"{len(UNTOUCHED)} runs left alone, {len(TAMPERINGS)} tampered with: {wrong} wrong")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
