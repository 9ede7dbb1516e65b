"""Damaged checkpoints, stores, run folders and recipes end in one sentence, or in the result of whole ones.

python -m bench.soak_files [FILES] [SEED]

Every file goes through the command that a user would give: upscale, train --resume, train, prepare, centroids,
train --dry-run.
"""

import io
import os
import random
import shutil
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import chdir, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from bench.damages import BINARY, JSON, TOML, Damage
from eco_fast.cli.main import BAD_INPUT
from eco_fast.cli.main import main as eco_fast
from eco_fast.data.folders import builtin_images
from eco_fast.data.images import read_image, write_png
from eco_fast.data.store import MANIFEST, Store
from eco_fast.models import load_network

RECIPE = """
[data]
train = ["set"]
patch = 8
loader = "plain"
[model]
features = 8
blocks = 1
[objective]
name = "eco"
[teacher]
checkpoint = "teacher.safetensors"
[train]
steps = 4
batch_size = 2
checkpoint_every = 2
log_every = 1
keep_checkpoints = 3
device = "cpu"
compile = false
"""
LONGEST = 1000  # characters of a sentence
SECONDS = 60  # for a command
CHANGES = (".lock", "config.toml", "environment.json", "stages.json", "metrics.jsonl")
"""What a start writes before it can know what else is wrong."""
STEP = "step-00000002"


@contextmanager
def limited() -> Iterator[None]:
    """Let what takes too long raise TimeoutError."""

    def late(*_: object) -> None:
        raise TimeoutError(f"no answer within {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(*arguments: str) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    err = io.StringIO()
    with redirect_stdout(io.StringIO()), redirect_stderr(err), limited():
        code = eco_fast(arguments)
    return code, err.getvalue()


def good(*arguments: str) -> None:
    """A command that must succeed."""
    code, said = run(*arguments)
    if code:
        raise SystemExit(f"{' '.join(arguments)}: {said}")


def make() -> None:
    """In the current folder: images, a store with centroids, a teacher in two formats, and two runs cut short."""
    photo = read_image(builtin_images("test")[1][1])
    for index in range(3):
        write_png(Path("set", f"{index}.png"), photo[80:118, 150 + 40 * index : 190 + 40 * index])
    Path("vanilla.toml").write_text(RECIPE.replace('"eco"', '"vanilla"'), encoding="utf-8")
    Path("recipe.toml").write_text(RECIPE, encoding="utf-8")
    good("train", "vanilla.toml", "--run", "vanilla")
    shutil.copy("vanilla/checkpoints/last.safetensors", "teacher.safetensors")
    torch.save(load_network(Path("teacher.safetensors")).state_dict(), "teacher.pt")
    good("train", "recipe.toml", "--run", "run")
    shutil.rmtree("vanilla/store")
    checkpoints = Path("run/checkpoints")
    for kind in (".state.pt", ".safetensors"):
        (checkpoints / f"step-00000004{kind}").unlink()
        shutil.copy(checkpoints / f"{STEP}{kind}", checkpoints / f"last{kind}")
    shutil.copytree("run", "older-kept")
    for path in checkpoints.glob(f"{STEP}.*"):
        path.unlink()


@dataclass(frozen=True)
class Target:
    """A file to be damaged."""

    files: str
    """A pattern that one file has."""
    command: tuple[str, ...]
    result: str
    """What the command makes: a file, or a store's folder."""
    damages: Mapping[str, Damage] = field(default_factory=lambda: BINARY)
    swap: str = ""
    """A whole file of the same kind, of something else."""
    names_it: bool = True
    """Whether a refusal must name the file or the folder that it is in."""

    def content(self) -> Any:
        """What the command has made, None for nothing."""
        made = next(iter(Path().glob(self.result)), None)
        if made is None or made.is_file():
            return made and made.read_bytes()
        store = Store(made)
        return list(store.entries.names()), [(one.shape, one.tobytes()) for one in store.images]

    def outcome(self, expected: Any) -> str:
        """What a command that succeeds has made of a damaged file."""
        try:
            same = expected is None or self.content() == expected
        except ValueError:  # of a store, for images are hashed when they are read
            return "refused when it is read"
        return "harmless" if same else "WRONG: another result"


UPSCALE = ("set/0.png", "out.png", "--device", "cpu")
RESUME, AGAIN = ("train", "recipe.toml", "--run", "run", "--resume"), ("train", "--run", "run", "--resume")
OLDER = ("train", "recipe.toml", "--run", "older-kept", "--resume")
PREPARE = ("prepare", "set", "--store", "run/store")
CENTROIDS = ("centroids", "--store", "run/store", "--teacher", "teacher.safetensors", "--scale", "2", "--device", "cpu")
WEIGHTS, STORE, MADE = "run/checkpoints/last.safetensors", "run/store", "run/store/centroids/*"
OTHER_STATE = "vanilla/checkpoints/last.state.pt"
TARGETS = {
    "weights": Target("teacher.safetensors", ("upscale", "teacher.safetensors", *UPSCALE), "out.png"),
    "weights of torch": Target("teacher.pt", ("upscale", "teacher.pt", *UPSCALE), "out.png"),
    "teacher": Target("teacher.safetensors", RESUME, WEIGHTS),
    "state": Target("run/checkpoints/last.state.pt", RESUME, WEIGHTS, swap=OTHER_STATE),
    "state, an older one kept": Target(
        "older-kept/checkpoints/last.state.pt", OLDER, "older-kept/checkpoints/last.safetensors", swap=OTHER_STATE
    ),
    "weights beside the state": Target(WEIGHTS, RESUME, WEIGHTS),
    "recipe of a run": Target("run/config.toml", AGAIN, WEIGHTS, TOML, "vanilla/config.toml"),
    "pinned inputs": Target("run/pinned.json", RESUME, WEIGHTS, JSON, "vanilla/pinned.json"),
    "rows": Target("run/metrics.jsonl", RESUME, WEIGHTS, JSON, "vanilla/metrics.jsonl"),
    "starts": Target("run/environment.json", RESUME, WEIGHTS, JSON, "vanilla/environment.json"),
    **{
        f"{kind} of {what}, {command[0]}": Target(f"{folder}/{files}", command, result, swap=f"{other}/{files}")
        for kind, files in (("manifest", MANIFEST), ("table", "*.table"), ("pack", "packs/*.pack"))
        for what, folder, other in (("images", STORE, MADE), ("centroids", MADE, STORE))
        for command, result in ((RESUME, WEIGHTS), (PREPARE, STORE) if what == "images" else (CENTROIDS, MADE))
    },
    "recipe": Target("recipe.toml", ("train", "recipe.toml", "--run", "new", "--dry-run"), "new", TOML, names_it=False),
}


def damage(target: Target, how: str, rng: random.Random) -> str:
    """Damage a target's file in the current folder; returns its path."""
    (path,) = Path().glob(target.files)
    times = path.stat()
    if how == "removed":
        path.unlink()
    elif how == "a folder in its place":
        path.unlink()
        path.mkdir()
    elif how == "swapped":
        (other,) = Path().glob(target.swap)
        shutil.copy(other, path)
    elif how == "others beside it":
        for kind in ("pack", "table", "safetensors", "state.pt", "json", "jsonl", "toml", "partial"):
            path.with_name(f"step-00000009.{kind}").write_bytes(rng.randbytes(99))
    else:
        path.write_bytes(target.damages[how](path.read_bytes(), rng))
        if rng.random() < 0.5:  # as a disk that rots
            os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    return str(path)


def judge(target: Target, path: str, expected: Any) -> str:
    """What becomes of a damaged file."""
    kept = {one: one.read_bytes() for one in Path().rglob("*") if one.is_file()}
    try:
        code, said = run(*target.command)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is wrong
        return f"WRONG: {type(error).__name__}: {str(error)[:300]}"
    if code == 0:
        return target.outcome(expected)
    if code != BAD_INPUT or not said.startswith("eco-fast: ") or said.count("\n") != 1 or len(said) > LONGEST:
        return f"WRONG: exit code {code}, says {said[:300]!r}"
    if target.names_it and not any(part in said for part in (path, Path(path).name, str(Path(path).parent))):
        return f"WRONG: does not name {path}, says {said!r}"
    lost = [str(one) for one, content in kept.items() if not one.is_file() or one.read_bytes() != content]
    if changed := [one for one in lost if not one.endswith(CHANGES)]:
        return f"WRONG: refused, but {changed} changed"
    return "refused"


def put_back(path: str, whole: Path) -> None:
    """Let a file be as it was."""
    if Path(path).is_dir():
        Path(path).rmdir()
    shutil.copy2(whole / path, path)


def again(target: Target, expected: Any) -> str:
    """What becomes of the command once the file is as it was, or once its damage is known."""
    try:
        code, said = run(*target.command)
        same = code == 0 and (expected is None or target.content() == expected)
    except BaseException as error:  # noqa: BLE001 - whatever it is, it is wrong
        return f"WRONG: again, {type(error).__name__}: {str(error)[:300]}"
    return "" if same else f"WRONG: again, {said or 'another result'}"


def cases(count: int, rng: random.Random) -> Iterator[tuple[str, str]]:
    """So many targets and damages, each target in turn, with its damages in an order of its own."""
    orders: dict[str, list[str]] = {}
    for index in range(count):
        name = list(TARGETS)[index % len(TARGETS)]
        if not orders.get(name):
            target = TARGETS[name]
            ways = [*target.damages, "removed", "a folder in its place", "others beside it"]
            orders[name] = [*ways, "swapped"] if target.swap else ways
            rng.shuffle(orders[name])
        yield name, orders[name].pop()


def main(count: int, seed: int) -> None:
    """Damage so many files."""
    torch.set_num_threads(1)
    rng = random.Random(seed)  # noqa: S311 - damage, no secret
    results: Counter[str] = Counter()
    with tempfile.TemporaryDirectory() as name:
        whole, work = Path(name, "whole"), Path(name, "work")
        whole.mkdir()
        with chdir(whole):
            make()
        expected: dict[str, Any] = {}
        for what, how in [*((what, "nothing") for what in TARGETS), *cases(count, rng)]:
            target = TARGETS[what]
            shutil.copytree(whole, work)
            with chdir(work):
                if how == "nothing":
                    good(*target.command)
                    expected[what] = target.content()
                else:
                    path = damage(target, how, rng)
                    result = judge(target, path, expected[what])
                    if result == "refused":
                        put_back(path, whole)
                    if result.startswith("refused"):
                        result = again(target, expected[what]) or result
                    results[result.partition(":")[0]] += 1
                    if result.startswith("WRONG"):
                        print(f"{what}, {how}: {result}", flush=True)
            shutil.rmtree(work)
    print(f"{count} damaged files of seed {seed}: " + ", ".join(f"{n} {what}" for what, n in sorted(results.items())))
    if results["WRONG"]:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*[int(value) for value in (*sys.argv[1:], *("400", "0")[len(sys.argv) - 1 :])])
