"""`train.micro_batch = "auto"`: what is chosen and kept, what the search leaves as it was, and too little memory."""

import json
import multiprocessing
import resource
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, redirect_stdout
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.data.batch import Batch, BatchPlanner, Samples
from eco_fast.data.images import Pixels
from eco_fast.inference.whole_images import Appetite
from eco_fast.training import micro_batch
from eco_fast.training.cost import passes_bytes
from eco_fast.training.micro_batch import made_up, settle_micro_batch
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.validation import ValidationSets
from eco_fast.utils.memory_meter import MemoryMeter, addresses, control_groups
from tests.helpers import complaint, leaves, plain_loader, write_crops_of

TINY = """
[data]
train = ["hr"]
validation = ["hr/0.png"]
patch = 8
[model]
features = 8
blocks = 1
[objective]
name = "vanilla"
[train]
steps = 12
batch_size = 6
micro_batch = "auto"
log_every = 4
validate_every = 6
checkpoint_every = 2
device = "cpu"
compile = false
"""


@pytest.fixture
def here(tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_crops_of(photo, Path("hr"))
    Path("tiny.toml").write_text(TINY, encoding="utf-8")
    return tmp_path


def give_seconds(patch: pytest.MonkeyPatch, seconds: Mapping[int, float]) -> list[int]:
    """Gives a patch of each size its seconds; lists the sizes that are timed."""
    seen: list[int] = []
    last: list[int] = []
    whole = TrainStep.try_part

    def try_part(step: TrainStep, samples: Samples, patches: int) -> None:
        last[:] = [patches]
        whole(step, samples, patches)

    def time_of(work: Callable[[], object], _: int, __: str) -> float:
        work()
        seen.extend(last)
        return seconds[last[0]] * last[0]

    patch.setattr(TrainStep, "try_part", try_part)
    patch.setattr(micro_batch, "time_of", time_of)
    return seen


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[int, float]], list[int]]:
    """The same for one test."""
    return partial(give_seconds, monkeypatch)


def train(*settings: str, run: str, resume: bool = False) -> int:
    given = [f"--{setting}" for setting in settings]
    return main(["train", "tiny.toml", "--run", run, *given, *(["--resume"] if resume else [])])


def kept(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "micro_batch.json").read_text(encoding="utf-8"))
    return found


def assert_same_bits(run: str, other: str) -> None:
    for name in ("metrics.jsonl", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
        assert Path(run, name).read_bytes() == Path(other, name).read_bytes(), name


class Training:
    """A step that has not been made, of a recipe of tiny networks."""

    def __init__(self, folder: Path, patch: int = 8, features: int = 8, **train: Any) -> None:
        values = {"patch": patch, "train": ["hr"]}
        model = {"features": features, "blocks": 1}
        settings = {"steps": 100, "device": "cpu", "compile": False, "micro_batch": "auto", **train}
        self.config = config.validate({"data": values, "model": model, "train": settings}, "test")
        self.folder = folder
        self.state = TrainingState(self.config, "cpu", None, "test")
        self.planner = BatchPlanner(self.config, [(60, 70), (80, 60)])
        self.step = TrainStep(self.state, self.planner.count)

    def settle(self) -> list[int]:
        """The sizes of the parts that the step is made of."""
        settle_micro_batch(self.step, self.state, self.planner, ValidationSets(), self.folder, "test")
        return [part.stop - part.start for part in self.step.micro_batches]


# --- what is chosen ---


def test_the_fastest_is_chosen_and_of_equals_the_largest(tmp_path: Path, timed: Any) -> None:
    seen = timed({1: 3.0, 2: 1.05, 4: 1.004, 8: 1.0, 16: 1.009, 32: 2.0})
    assert Training(tmp_path, batch_size=32).settle() == [16, 16]
    assert seen[:6] == [1, 2, 4, 8, 16, 32]
    assert set(seen[6:]) == {4, 8, 16}  # the three that came closest, in turns
    assert seen[6:9] == seen[9:12]


def test_where_one_is_far_ahead_nothing_is_timed_twice(tmp_path: Path, timed: Any) -> None:
    seen = timed({1: 3.0, 2: 1.0, 4: 2.0, 7: 3.0})
    assert Training(tmp_path, batch_size=7).settle() == [1, 2, 2, 2]
    assert seen == [1, 2, 4, 7]


@pytest.mark.parametrize(("most", "parts"), [(7, [5, 5, 6]), (5, [4, 4, 4, 4]), (1, [1] * 16)])
def test_memory_that_runs_out_is_part_of_the_search(
    most: int, parts: list[int], tmp_path: Path, timed: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what lies between a size that fits and its double is tried."""
    timed({size: 1 / size for size in range(1, 17)})
    whole = TrainStep.try_part

    def try_part(step: TrainStep, samples: Samples, patches: int) -> None:
        if patches > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        whole(step, samples, patches)

    monkeypatch.setattr(TrainStep, "try_part", try_part)
    assert Training(tmp_path, batch_size=16).settle() == parts


def test_other_errors_are_no_part_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(TrainStep, "try_part", broken)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        Training(tmp_path).settle()


# --- what it leaves as it was ---


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_search_changes_nothing_that_lasts(precision: str, tmp_path: Path) -> None:
    training = Training(tmp_path, batch_size=6, precision=precision, ema_decay=0.9)
    training.state.network.register_buffer("count", torch.zeros(()))  # as of a layer that counts its batches
    hook = lambda network, *_: (network.count.add_(torch.rand(())), None)[1]  # noqa: E731
    training.state.network.register_forward_hook(hook)
    before = [value.clone() for value in leaves(training.state.state_dict()) if isinstance(value, torch.Tensor)]
    draws = torch.get_rng_state()
    training.settle()
    after = [value for value in leaves(training.state.state_dict()) if isinstance(value, torch.Tensor)]
    assert len(before) > 20
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
    assert torch.equal(torch.get_rng_state(), draws)


@pytest.mark.parametrize(
    "changes", [[], ["data.noise_sigma=5"], ["objective.alpha_sample=true"], ["objective.name=vanilla"]]
)
def test_what_is_tried_looks_like_a_batch(changes: list[str], photo: Pixels) -> None:
    """In shapes, types and memory format, by which the compiler knows it again."""
    made = config.load("quickstart", ["train.steps=10", "train.batch_size=3", *changes])
    centroids = [photo] if made.needs_centroids else None
    loader = plain_loader(made, [photo], centroids)
    expected, tried = loader.batch_at(5).samples, made_up(loader.planner, "cpu")
    for name, wanted in expected._asdict().items():
        found = getattr(tried, name)
        assert (found is None) == (wanted is None), name
        if wanted is not None:
            assert (found.shape, found.dtype, found.stride()) == (wanted.shape, wanted.dtype, wanted.stride()), name


@pytest.mark.usefixtures("here")
def test_a_run_ends_in_the_bits_of_its_number(timed: Any, capsys: pytest.CaptureFixture[str]) -> None:
    timed({1: 3.0, 2: 2.0, 3: 1.0, 6: 2.0})
    assert train(run="auto") == 0
    assert "student micro-batch: 3 patches at once, the fastest of 1 (3e+03 ms), " in capsys.readouterr().out
    assert train("train.micro_batch=3", run="number") == 0
    assert_same_bits("auto", "number")
    assert kept("auto")["patches"] == 3
    assert not Path("number", "micro_batch.json").exists()


# --- what is kept ---


@pytest.mark.usefixtures("here")
def test_a_resumed_run_takes_what_it_began_with(
    timed: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = TrainStep.__call__

    def stopped(step: TrainStep, batch: Batch[Samples]) -> Any:
        if batch.step == 7:
            raise KeyboardInterrupt
        return whole(step, batch)

    timed({1: 3.0, 2: 1.0, 3: 2.0, 6: 2.0})
    assert train(run="unbroken") == 0
    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", stopped)
        assert train(run="broken") == 130
    seen = timed({1: 3.0, 2: 2.0, 3: 2.0, 6: 1.0})  # another answer, if it were asked again
    capsys.readouterr()
    assert train(run="broken", resume=True) == 0
    assert seen == []
    assert "student micro-batch: 2 patches at once, as when the run began\n" in capsys.readouterr().out
    assert_same_bits("broken", "unbroken")


def test_another_device_chooses_anew(tmp_path: Path, timed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    timed({1: 3.0, 2: 1.0, 3: 2.0, 6: 2.0})
    assert Training(tmp_path, batch_size=6).settle() == [2, 2, 2]
    timed({1: 3.0, 2: 2.0, 3: 2.0, 4: 2.0, 6: 1.0})
    assert Training(tmp_path, batch_size=4).settle() == [2, 2]  # as on other ranks, whose share is another
    assert Training(tmp_path, batch_size=6).settle() == [2, 2, 2]
    monkeypatch.setattr(micro_batch, "device_name", lambda _: "another")
    assert Training(tmp_path, batch_size=6).settle() == [6]


# --- memory ---


@contextmanager
def room_of(size: int) -> Iterator[None]:
    """What `ulimit -v` would leave to this process."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, before[1]))
    used = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_too_small_for_one_patch_is_one_sentence(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with room_of(200 << 20):
        said = complaint(capsys, "train", "tiny.toml", "--run", "run")
    assert said.startswith("train.micro_batch=auto: no patch fits, 1 would take ")
    assert said.endswith(" that `ulimit -v` leaves; give the run more memory, or lower data.patch")
    assert not (here / "run" / "micro_batch.json").exists()


def search_under_a_limit(folder: Path) -> tuple[list[int], list[int], str]:
    """The parts that are chosen where about ten of 64 patches fit, the sizes that were tried, and what was said."""
    with pytest.MonkeyPatch.context() as patch:
        seen = give_seconds(patch, {size: 1 / size for size in range(1, 65)})
        training = Training(folder, patch=24, features=32, batch_size=64)
        one, two = (passes_bytes(training.config, "cpu", training.state.precision, count) for count in (1, 2))
        with room_of((256 << 20) + 10 * (two - one) + (4 << 20)), redirect_stdout(StringIO()) as said:
            return training.settle(), seen, said.getvalue()


def test_a_limit_is_never_reached(tmp_path: Path) -> None:
    """What fits is chosen by a computation of it: nothing that would fail is tried.

    In a new process: the memory that other tests have left would serve more patches.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as fresh:
        parts, seen, said = fresh.submit(search_under_a_limit, tmp_path).result()
    assert "ran out of memory" not in said
    assert max(seen) == max(parts) < 64, said


def test_what_passes_take_is_what_tensors_take(tmp_path: Path) -> None:
    training = Training(tmp_path, batch_size=4)
    samples, loss = made_up(training.planner, "cpu").complete(), training.step.loss
    known = [*loss.parameters(), *loss.buffers(), *(one for one in samples if one is not None)]
    with Appetite(known) as most:
        torch.autograd.grad(loss(samples, torch.ones(())), training.step.weights)
    computed = passes_bytes(training.config, "cpu", training.state.precision, 4)
    assert computed == pytest.approx(most.bytes, rel=0.02)


def test_the_meter_sees_what_is_taken() -> None:
    meter = MemoryMeter("cpu")
    assert max(meter.taken().values()) < 8 << 20
    room = {one.of: one for one in meter.rooms()}["that the computer has available"]
    held = torch.ones(16 << 20)  # 64 MB
    taken = meter.taken()
    assert 64 << 20 <= taken["resident"] < 80 << 20
    assert taken["addresses"] == 0 or taken["addresses"] >= 64 << 20  # whose peak the system never forgets
    with room_of(1 << 30):
        (left,) = addresses()
    assert 0 <= (1 << 30) - left.bytes < 16 << 20
    assert room.bytes > held.nbytes


@pytest.mark.parametrize(
    ("line", "folder", "names"),
    [
        ("0::/a/b", "", ("memory.max", "memory.current", "inactive_file")),
        ("4:memory:/a/b", "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")),
    ],
)
def test_control_groups_of_both_versions(line: str, folder: str, names: tuple[str, ...], tmp_path: Path) -> None:
    """The inner one has no limit, the outer one has."""
    own = tmp_path / "cgroup"
    own.write_text(f"9:name=systemd:/a/b\n{line}\n", encoding="ascii")
    unlimited = "max" if folder == "" else str((1 << 63) - 4096)
    for group, limit in (("a/b", unlimited), ("a", str(5 << 30))):
        where = tmp_path / folder / group
        where.mkdir(parents=True, exist_ok=True)
        for name, text in zip(names, (limit, str(2 << 30), f"{names[2]} {1 << 30}\nother 7\n"), strict=True):
            where.joinpath("memory.stat" if name == names[2] else name).write_text(text, encoding="ascii")
    assert list(control_groups(tmp_path, own)) == [(4 << 30, f"that the control group's {names[0]} leaves")]
    assert list(control_groups(tmp_path, tmp_path / "none")) == []


@pytest.mark.parametrize("value", ["-1", "1.5", "true", '"all"'])
def test_what_is_no_number_of_patches(value: str) -> None:
    with pytest.raises(ValueError, match=r'micro_batch: input should be a number of patches from 0, or "auto", got'):
        config.load("quickstart", [f"train.micro_batch={value}"])
    assert config.load("quickstart", ["train.micro_batch=auto"]).train.micro_batch == "auto"
