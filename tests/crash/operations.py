"""The five operations whose power cuts are rehearsed, on small images and networks: a run, a store, centroids, a
comparison, a release. Each says what a user does after the cut, and what must be there then."""

import io
import json
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from eco_fast.cli.main import BAD_INPUT, main
from eco_fast.data import store_writer
from eco_fast.data.folders import builtin_images
from eco_fast.data.images import read_image, write_png
from eco_fast.data.packs import is_intact
from eco_fast.data.store_table import Entry
from eco_fast.data.store_writer import Writer
from eco_fast.models import save_network
from eco_fast.models.edsr import EDSR
from eco_fast.training.checkpoints import Checkpoints, load_state
from eco_fast.training.run_folder import read_rows
from eco_fast.utils import locks
from eco_fast.utils.content_hash import content_hash
from tests.crash.recorder import File, Recorder, Tree

RECIPE = """
[data]
train = ["set"]
validation = ["scored"]
patch = 8
loader = "plain"
[model]
features = 4
blocks = 1
[objective]
name = "eco"
[teacher]
checkpoint = "teacher.safetensors"
[train]
steps = 4
batch_size = 2
checkpoint_every = 1
validate_every = 2
log_every = 1
keep_checkpoints = 2
device = "cpu"
compile = false
trackers = []
"""
"""Trackers' own files are theirs, and no training depends on them."""
GROWING = re.compile(r"(^|/)(\.lock|metrics\.jsonl|journal\.jsonl|packs/\d+\.pack|locks/.*)$")
"""Files that are not put in place in one step."""
LOCK = re.compile(r"(^|/)(\.lock|locks/.*)$")
LITTER = re.compile(r"(^|/)(\.[^/]*\.partial(/|$)|before-step-\d+\.metrics\.jsonl$)")
"""What a program leaves beside what it is writing when it is cut off; and rows that no checkpoint stands for."""
OF_THE_CLOCK = re.compile(r"(^|/)(environment\.json|stages\.json|report\.html|[^/]*\.onnx\.md|\.lock|locks(/.*)?)$")
"""Files that tell of the starts, or of the time."""
CLOCK_KEYS = {"summary.json": ("seconds",), "manifest.json": ("written", "teacher_stamp", "sha256")}


@dataclass(frozen=True)
class Operation:
    """Something that a user does in the current folder, and goes on with after a power cut."""

    make: Callable[[], object]
    """Makes what it begins with."""
    act: Callable[[], object]
    go_on: Callable[[], object]
    """What the user does next; ValueError is a refusal, of one sentence."""
    may_say: str = "nothing may be refused"
    """How a refusal may begin, where everything is there."""


def command(*words: str) -> Callable[[], None]:
    """A command of eco-fast, which succeeds or says one sentence."""

    def run() -> None:
        said = io.StringIO()
        with redirect_stdout(io.StringIO()), redirect_stderr(said):
            code = main(words)
        sentence = said.getvalue().removeprefix("eco-fast: ").removesuffix("\n")
        if code == BAD_INPUT and "\n" not in sentence:
            raise ValueError(sentence)
        assert code == 0, f"{' '.join(words)}: exit code {code}, {said.getvalue()}"

    return run


def in_turn(*steps: Callable[[], object]) -> Callable[[], None]:
    """All of them, one after the other."""

    def run() -> None:
        for step in steps:
            step()

    return run


def _make_images() -> None:
    photo = read_image(builtin_images("test")[1][1])
    for index in range(3):
        write_png(Path("set", f"{index}.png"), photo[80:118, 150 + 40 * index : 190 + 40 * index])
    write_png(Path("scored/0.png"), photo[180:208, 150:182])


def _make_all() -> None:
    _make_images()
    torch.manual_seed(0)
    save_network(Path("teacher.safetensors"), EDSR(2, 4, 1))
    Path("recipe.toml").write_text(RECIPE, encoding="utf-8")


def _change_images() -> None:
    """One is another, one is new."""
    shutil.copy("set/0.png", "set/3.png")
    shutil.copy("scored/0.png", "set/1.png")


def _lose_the_last_step() -> None:
    """As a kill that came between the rows of the last step and its checkpoint."""
    folder = Path("run/checkpoints")
    for kind in (".state.pt", ".safetensors"):
        (folder / f"step-00000004{kind}").unlink()
        for name in ("last", "best"):
            shutil.copy(folder / f"step-00000003{kind}", folder / f"{name}{kind}")
    Path("run/summary.json").unlink()


def _damage_the_last_state() -> None:
    path = Path("run/checkpoints/last.state.pt")
    path.write_bytes(path.read_bytes()[:-999])
    Path("run/checkpoints/step-00000004.state.pt").unlink()


TRAIN = ("train", "recipe.toml", "--run", "run")
MANY_ROWS = (*TRAIN, "--train.steps", "40", "--train.checkpoint_every", "20")
SAID = ("--name", "Photo", "--author", "Jane Doe", "--license", "MIT", "--description", "Photographs.")
PUBLISH = ("publish", "run", *SAID, "--url", "https://example.org/photo", "--tags", "photo", "--to", "onnx")
TEACHER = ("--teacher", "teacher.safetensors", "--scale", "2", "--device", "cpu")
train, resume = command(*TRAIN), command(*TRAIN, "--resume")
train_long, resume_long = command(*MANY_ROWS), command(*MANY_ROWS, "--resume")
prepare, centroids = command("prepare", "set", "--store", "store"), command("centroids", "--store", "store", *TEACHER)
compare = command("compare", "recipe.toml", "--variant", "vanilla", "--variant", "eco", "--seeds", "1", "--run", "two")
publish = command(*PUBLISH, "--out", "release")
OPERATIONS = {
    "run": Operation(_make_all, train, resume),
    "run, resumed": Operation(in_turn(_make_all, train, _lose_the_last_step), resume, resume),
    "run, from an older state": Operation(in_turn(_make_all, train, _damage_the_last_state), resume, resume),
    "run, of many rows": Operation(_make_all, train_long, resume_long),
    "store": Operation(_make_images, prepare, prepare),
    "store, other images": Operation(in_turn(_make_images, prepare, _change_images), prepare, prepare),
    "centroids": Operation(in_turn(_make_all, prepare), centroids, centroids),
    "centroids, other images": Operation(
        in_turn(_make_all, prepare, centroids, _change_images, prepare), centroids, centroids
    ),
    "comparison": Operation(_make_all, compare, compare),
    "release": Operation(in_turn(_make_all, train), publish, publish, may_say="release: exists already"),
}


@contextmanager
def before_the_cut(recorder: Recorder) -> Iterator[None]:
    """Let the package promise what it says to have made, and journal each image by itself."""
    write, sync = Checkpoints._write, Writer.sync
    kept: dict[Path, dict[str, Entry]] = {}

    def promising_write(self: Checkpoints, names: list[str], weights: Any, metadata: Any, state: Any) -> None:
        write(self, names, weights, metadata, state)
        rows = [row for row in read_rows(self.folder.parent) if row["step"] <= state["step"]]
        recorder.promise(f"checkpoint {self.folder}", partial(goes_on, self.folder, state["step"], rows))

    def promising_sync(self: Writer) -> None:
        images = kept.setdefault(self.folder, {})
        images |= {entry.name: entry for entry in self._pending}
        sync(self)
        recorder.promise(f"images {self.folder}", partial(holds, self.folder, dict(images)))

    with (
        recorder,
        mock.patch.object(Checkpoints, "_write", promising_write),
        mock.patch.object(Writer, "sync", promising_sync),
        mock.patch.object(store_writer, "JOURNAL_SECONDS", 0.0),
        mock.patch.object(locks, "_kernel", return_value="before the cut"),
    ):
        yield


@contextmanager
def after_the_cut() -> Iterator[None]:
    """On a disk that need not be waited for, two minutes after the cut."""
    with mock.patch("os.fsync"), mock.patch.object(locks, "SILENCE", 0.0), mock.patch.object(locks, "POLL", 0.0):
        yield


def goes_on(folder: Path, step: int, rows: list[dict[str, Any]]) -> bool:
    """Whether a run goes on at a step or later, with the rows that led to it."""
    found = load_state(folder)
    return found is not None and found.state["step"] >= step and read_rows(folder.parent)[: len(rows)] == rows


def holds(folder: Path, images: dict[str, Entry]) -> bool:
    """Whether images need not be made again."""
    with Writer(folder, {}) as writer:
        known = [writer.known(name) for name in images]
    return all(
        one is not None
        and one.sha256 == images[one.name].sha256
        and is_intact(folder / one.file, one.offset, one.size, one.sha256)
        for one in known
    )


def result(tree: Tree) -> dict[str, Any]:
    """What an operation has made, as far as it depends on what it was given alone."""
    return {
        path: file and _without_clock(path, file)
        for path, file in tree.items()
        if not OF_THE_CLOCK.search(path) and not LITTER.search(path)
    }


def _without_clock(path: str, file: File) -> Any:
    name = path.rpartition("/")[2]
    if name.endswith(".state.pt"):  # equal values may be packed in more than one way
        return content_hash(torch.load(io.BytesIO(file.content), weights_only=True))
    if name == "SHA256SUMS":
        return [line for line in file.content.split(b"\n") if not OF_THE_CLOCK.search(line.decode()[66:])]
    if name not in CLOCK_KEYS:
        return file.content
    return _without(json.loads(file.content), CLOCK_KEYS[name])


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {key: _without(one, keys) for key, one in value.items() if key not in keys}
    return [_without(one, keys) for one in value] if isinstance(value, list) else value
