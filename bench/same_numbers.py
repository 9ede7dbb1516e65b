"""Whether two checkouts make the same numbers, to the bit: stores, centroids, trained weights, kernels, scores.

python -m bench.same_numbers BEFORE AFTER [--renamed NEW=OLD ...] [--quickstart]

The same probes run in both, each with one thread, side by side. They are written in the names of AFTER; where BEFORE
has another name for a recipe's key, a command or a score, say so:
--renamed train.batch_size=train.batch centroids=teach baseline=vanilla
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

Digests = dict[str, str]
"""What a probe has made, by name: SHA-256, or the value itself."""

PROBES = str(Path(__file__).with_name("digests.py"))  # runs in a process of the checkout
STEPS = 50
SHARED = (
    'data.train=["builtin:train"]',
    "train.batch_size=4",
    f"train.steps={STEPS}",
    f"train.checkpoint_every={STEPS}",
    'train.device="cpu"',
    "train.compile=false",
    "teacher.steps=10",
    'objective.name="eco"',
    "optimizer.learning_rate=1e-3",
)
FAMILIES = {
    "edsr": (
        "model.features=8",
        "model.blocks=2",
        "data.patch=24",
        'data.loader="plain"',
        'optimizer.schedule="cosine"',
        "optimizer.warmup_steps=5",
        "train.ema_decay=0.9",
    ),
    "rcan": (
        "model.features=8",
        "model.groups=2",
        "model.blocks=1",
        "model.reduction=4",
        "data.patch=16",
        'data.loader="dali"',
        "optimizer.clip_value=0.1",
        "train.micro_batch=2",
    ),
    "swinir": (
        "model.features=12",
        "model.depths=[2]",
        "model.heads=[2]",
        'model.upsampler="pixelshuffledirect"',
        "model.patch=16",
        "data.patch=16",
        'data.loader="dali"',
        'objective.loss="charbonnier"',
        'optimizer.name="adamw"',
    ),
    "rrdb": (
        "model.features=8",
        "model.blocks=1",
        "model.growth=4",
        "data.patch=16",
        'data.loader="plain"',
        "data.noise_sigma=10",
        'objective.loss="l2"',
        "train.ema_decay=0.9",
    ),
    "edsr-lamb": (
        "model.features=8",
        "model.blocks=2",
        "data.patch=16",
        'data.loader="plain"',
        'optimizer.name="lamb"',
        "optimizer.clip_value=0.1",
        "optimizer.weight_decay=0.01",
        "train.ema_decay=0.9",
    ),
}


class Checkout:
    """One of the two trees, and what its commands have made in a folder.

    Args:
        tree: its root.
        folder: where its commands run.
        renamed: its name for each name that the probes use and it does not have.
    """

    def __init__(self, tree: Path, folder: Path, renamed: dict[str, str]) -> None:
        self.tree, self.folder, self.renamed = tree, folder, renamed
        folder.mkdir()

    def run(self, *words: str, **more: str) -> str:
        """Run Python in this tree; what it prints."""
        path = os.pathsep.join(str(self.tree / part) for part in (".", "kernels"))
        threads = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONHASHSEED": "0"}
        done = subprocess.run(
            [sys.executable, *words],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": path, **threads, **more},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise SystemExit(
                f"{self.tree}: {' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def command(self, name: str, *words: str) -> None:
        """Run a command of eco-fast."""
        self.run("-m", "eco_fast", self.renamed.get(name, name), *words)

    def recipe(self, name: str, settings: Sequence[str]) -> str:
        """A recipe's file of these lines."""
        pairs = (setting.partition("=") for setting in settings)
        lines = [f"{self.renamed.get(key, key)} = {value}\n" for key, _, value in pairs]
        (self.folder / name).write_text("".join(lines), encoding="utf-8")
        return name

    def commands(self) -> Digests:
        """A store and its centroids by commands of their own, and a course of each family with teacher and student."""
        made: Digests = {}
        for family, settings in FAMILIES.items():
            run = f"runs/{family}"
            network = f'model.name="{family.partition("-")[0]}"'
            recipe = self.recipe(f"{family}.toml", ("scale=2", network, *settings, *SHARED))
            self.command("train", recipe, "--run", run)
            made |= dict(self.found(run))
        self.command("prepare", "builtin:train", "--store", "store")
        teacher = "runs/edsr/checkpoints/last.safetensors"
        self.command("centroids", "--store", "store", "--teacher", teacher, "--scale", "2", "--device", "cpu")
        return made | dict(self.found("store"))

    def found(self, part: str) -> Iterator[tuple[str, str]]:
        """The packs of images, and the tensors of checkpoints below a folder."""
        root = self.folder / part
        for path in root.rglob("*.pack"):
            yield f"{part} {kind_of(path)} {path.name}", sha256(path.read_bytes())
        for path in root.rglob("last.safetensors"):
            for name, digest in json.loads(self.run(PROBES, str(path))).items():
                yield f"{path.relative_to(self.folder)} {name}", digest

    def kernels(self) -> Digests:
        """The ops on the CPU, and the Triton kernels in the interpreter."""
        made: Digests = json.loads(self.run(PROBES, TRITON_INTERPRET="1"))
        return made

    def scores(self) -> Digests:
        """What the quick start's table shows."""
        self.command("train", "quickstart", "--run", "quickstart")
        summary = json.loads((self.folder / "quickstart" / "summary.json").read_text(encoding="utf-8"))
        renamed = {old: new for new, old in self.renamed.items()}
        return {
            f"quick start {renamed.get(name, name)} {renamed.get(score, score)}": repr(value)
            for name, scores in summary["sets"]["builtin:test"].items()
            for score, value in scores.items()
        }

    def probe(self, *, quickstart: bool) -> Digests:
        """All digests."""
        return self.kernels() | self.commands() | (self.scores() if quickstart else {})


def kind_of(path: Path) -> str:
    return "centroids" if "centroids" in path.parts else "hr"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def compare(before: Digests, after: Digests) -> list[str]:
    """A line for each value that differs or that only one checkout has made."""
    return [
        f"{name}: {before.get(name, 'absent')} before, {after.get(name, 'absent')} after"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.same_numbers")
    parser.add_argument("before", type=Path, help="a checkout")
    parser.add_argument("after", type=Path, help="another one, whose names the probes use")
    parser.add_argument("--renamed", nargs="+", default=[], metavar="NEW=OLD", help="keys, commands, scores of BEFORE")
    parser.add_argument("--quickstart", action="store_true", help="the quick start's scores too: 10 minutes")
    given = parser.parse_args()
    renamed = dict(pair.split("=") for pair in given.renamed)
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(2) as pool:
        trees = (
            Checkout(given.before.resolve(), Path(folder, "before"), renamed),
            Checkout(given.after.resolve(), Path(folder, "after"), {}),
        )
        before, after = pool.map(lambda tree: tree.probe(quickstart=given.quickstart), trees)
    differences = compare(before, after)
    print("\n".join([*differences, f"{len(before | after)} values compared, {len(differences)} differ"]))
    raise SystemExit(bool(differences))


if __name__ == "__main__":
    main()
