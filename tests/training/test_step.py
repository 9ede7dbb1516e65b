"""The step: nothing waits for the device, nothing recompiles, 16 bits lose nothing, bad steps leave no trace."""

import itertools
import json
import os
import platform
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from eco_fast import config
from eco_fast.cli.main import main
from eco_fast.config import Config, Optimizer, Train
from eco_fast.data.batch import Batch, Samples
from eco_fast.data.images import Pixels
from eco_fast.models import build, load_network
from eco_fast.training.memory import explain_oom
from eco_fast.training.optim.optimizer_step import FIRST_SCALE, OptimizerStep
from eco_fast.training.precision import Precision, set_precision
from eco_fast.training.profiling import Stopwatch, measured_peak, training_flops
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainingLoss, TrainStep, split
from tests.helpers import READS_THE_DEVICE, leaves, plain_loader, write_crops_of

OPTIMIZERS = ["adam", "adamw", "lamb", "muon"]
SMALL: dict[str, dict[str, Any]] = {
    "edsr": {"features": 8, "blocks": 1},
    "rcan": {"name": "rcan", "features": 16, "groups": 1, "blocks": 2},
    "swinir": {"name": "swinir", "features": 8, "depths": [2], "heads": [2], "window": 4, "patch": 8, "drop_path": 0.0},
    "rrdb": {"name": "rrdb", "features": 8, "blocks": 1, "growth": 4},
}


def recipe(**changes: Any) -> Config:
    """A tiny recipe; `train__steps=5` changes one key of a section."""
    values: dict[str, Any] = {
        "data": {"patch": 8},
        "model": {"features": 8, "blocks": 1},
        "optimizer": {"clip_value": 0.1, "spike_factor": 5.0},
        "train": {"steps": 100, "batch_size": 4, "compile": False, "device": "cpu"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values.get(section, {}), name: value} if name else value
    return config.validate(values, "test")


@pytest.fixture
def pictures(photo: Pixels) -> list[Pixels]:
    return [photo[index * 40 : index * 40 + 40, 100:160] for index in range(4)]


def batches(made: Config, pictures: list[Pixels], steps: range) -> list[Batch[Samples]]:
    loader = plain_loader(made, pictures[:2], pictures[2:])
    return [loader.batch_at(step) for step in steps]


def step_of(made: Config, device: str = "cpu") -> tuple[TrainStep, TrainingState]:
    state = TrainingState(made, device, None, "test")
    return TrainStep(state, made.train.batch_size), state


class NoReading(TorchDispatchMode):
    """Refuses every operator that needs a value of the device on the host."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in READS_THE_DEVICE, function
        return function(*args, **(kwargs or {}))


def test_no_reading_refuses_what_reads() -> None:
    for read in (lambda x: x.item(), bool, lambda x: x.nonzero(), lambda x: torch.equal(x, x)):
        with pytest.raises(AssertionError), NoReading():
            read(torch.ones(1))


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_ten_steps_read_nothing_back(name: str, precision: str, pictures: list[Pixels]) -> None:
    made = recipe(optimizer__name=name, train__precision=precision, train__micro_batch=3, train__ema_decay=0.9)
    step, _ = step_of(made)
    for batch in batches(made, pictures, range(45, 55)):  # HR and centroid are both read
        with NoReading():
            step(batch)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_on_a_device_that_has_no_values(
    name: str, pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tensors on `meta` have shapes alone: whatever would read one on the host, on whatever device, raises."""
    fused = "_get_fused_kernels_supported_devices"
    modules = [module for path, module in sys.modules.items() if path.startswith("torch.") and fused in vars(module)]
    devices = [*getattr(modules[0], fused)(), "meta"]
    for module in modules:
        monkeypatch.setattr(module, fused, lambda: devices)
    for kernel in ("_fused_adam_", "_fused_adamw_", "_fused_sgd_"):  # of torch, without a form for shapes alone
        monkeypatch.setattr(torch, kernel, lambda *_, **__: None)
    made = recipe(optimizer__name=name, train__ema_decay=0.9, train__micro_batch=3, train__precision="fp32")
    step, state = step_of(made, "meta")
    for batch in batches(made, pictures, range(45, 48)):
        loss = step(batch)
    assert loss.is_meta
    with pytest.raises((RuntimeError, NotImplementedError)):
        loss.item()
    with pytest.raises(NotImplementedError):
        state.updater.counters.skipped.cpu()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_everything_that_lasts_is_changed_in_place(name: str, pictures: list[Pixels]) -> None:
    """A step could be recorded and replayed: what the next one reads is where this one has found it."""
    made = recipe(optimizer__name=name, train__precision="fp16", train__ema_decay=0.9)
    step, state = step_of(made)
    places = []
    for batch in batches(made, pictures, range(45, 49)):
        step(batch)
        lasting = [value for value in leaves(state.updater.state_dict()) if isinstance(value, torch.Tensor)]
        lasting += [*state.network.parameters(), *state.averaged.parameters()]  # type: ignore[union-attr]
        places.append([value.data_ptr() for value in lasting])
    assert len(places[0]) > 30
    assert places[0] == places[1] == places[2] == places[3]


@pytest.fixture
def compiled_graphs() -> Iterator[Any]:
    torch._dynamo.reset()
    counters.clear()
    yield lambda: counters["stats"]["unique_graphs"]
    torch._dynamo.reset()


@pytest.mark.slow
def test_one_graph_serves_the_whole_course(pictures: list[Pixels], compiled_graphs: Any) -> None:
    """From the centroid alone over the blend to HR alone, at any learning rate: compiled once, in one piece."""
    made = recipe(train__compile=True)
    step, _ = step_of(made)
    course = batches(made, pictures, range(5, 100, 10))
    losses = [float(step(batch)) for batch in course]
    assert {batch.samples.hr is not None for batch in course} == {True, False}
    assert {batch.samples.sr is not None for batch in course} == {True, False}
    assert compiled_graphs() == 1
    assert not counters["graph_break"]
    eager, _ = step_of(recipe())
    expected = [float(eager(batch)) for batch in course]
    assert losses == pytest.approx(expected, rel=1e-5)


def test_a_batch_is_cut_into_the_fewest_nearly_equal_parts() -> None:
    for samples, most in itertools.product(range(1, 40), range(1, 45)):
        parts = split(samples, most)
        sizes = [part.stop - part.start for part in parts]
        assert [index for part in parts for index in range(samples)[part]] == list(range(samples))
        assert len(parts) == -(-samples // most)
        assert max(sizes) <= most
        assert max(sizes) - min(sizes) <= 1


# --- precision ---


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_sixteen_bits_follow_float32(precision: str, pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch) -> None:
    """The network computes in 16 bits, its gradients arrive unscaled; weights and optimizer stay float32."""
    steps = {name: step_of(recipe(train__precision=name)) for name in ("fp32", precision)}
    for _, state in steps.values():
        monkeypatch.setattr(state.updater.optimizer, "step", lambda: None)
    (batch,) = batches(recipe(), pictures, range(50, 51))
    losses = {name: float(step(batch)) for name, (step, _) in steps.items()}
    assert losses[precision] == pytest.approx(losses["fp32"], rel=0.01)
    assert losses[precision] != losses["fp32"]
    exact, rough = (state.updater for _, state in steps.values())
    for one, other in zip(exact.gradients, rough.gradients, strict=True):
        assert other.dtype == torch.float32
        assert (one - other).norm() <= 0.1 * one.norm()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scaled_gradients_make_the_same_step(name: str) -> None:
    """Powers of two scale exactly; an overflow is skipped and halves the scale, a spike leaves it."""
    chosen = Optimizer(name=name, clip_value=0.1, spike_factor=5.0)  # type: ignore[arg-type]
    plain, scaled = (Parameter(torch.linspace(-1, 1, 24).view(4, 6)) for _ in range(2))
    updaters = (
        OptimizerStep([plain], chosen, "cpu", matrices=[plain]),
        OptimizerStep([scaled], chosen, "cpu", matrices=[scaled], scales=True),
    )

    def step(updater: OptimizerStep, gradient: Tensor, loss: float) -> bool:
        updater.gradients[0].copy_(gradient * updater.scale)
        updater.loss.fill_(loss)
        return bool(updater.step(torch.tensor(1e-2)))

    for index in range(5):
        for updater in updaters:
            assert not step(updater, torch.linspace(-0.3, 0.4, 24).view(4, 6) * (index + 1), 4.0)
    assert torch.equal(plain, scaled)
    before = scaled.detach().clone()
    assert step(updaters[1], torch.full((4, 6), float("inf")), 4.0)
    assert float(updaters[1].scale) == FIRST_SCALE / 2
    assert step(updaters[1], torch.ones(4, 6), 400.0)
    assert float(updaters[1].scale) == FIRST_SCALE / 2
    assert torch.equal(scaled, before)


@pytest.mark.parametrize("micro_batch", [0, 3])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("name", ["edsr", "rcan", "swinir", "rrdb"])
def test_weights_cast_in_one_piece_make_the_bits_of_autocast(
    name: str, precision: str, micro_batch: int, pictures: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradients are those of the float32 network under autocast, which casts each weight where it is used."""
    made = recipe(model=SMALL[name], train__precision=precision, train__micro_batch=micro_batch, optimizer={})
    step, state = step_of(made)
    monkeypatch.setattr(state.updater.optimizer, "step", lambda *_: None)
    (batch,) = batches(made, pictures, range(50, 51))
    plain = TrainingLoss(state.network, made.data, made.objective, state.precision)
    expected = [torch.zeros_like(parameter) for parameter in state.updater.parameters]
    for part in split(4, micro_batch or 4):
        share = (part.stop - part.start) / 4
        upstream = state.updater.scale * share
        loss = plain(batch.samples.complete().part(part), upstream)
        torch._foreach_add_(expected, torch.autograd.grad(loss, state.updater.parameters, upstream))
    assert step.working is not None
    assert len({parameter.dtype for parameter in step.weights}) == (2 if name == "swinir" else 1)
    scale = float(state.updater.scale)
    step(batch)
    for gradient, wanted in zip(state.updater.gradients, expected, strict=True):
        assert torch.equal(gradient, wanted / scale) or not gradient.isfinite().all()
    assert sum(bool(gradient.any()) for gradient in state.updater.gradients) > len(expected) // 2


def test_precisions_that_a_cpu_has() -> None:
    names = {wanted: set_precision(Train(precision=wanted), "cpu").name for wanted in ("auto", "fp32", "bf16", "fp16")}
    assert names == {"auto": "fp32", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
    assert [Precision(name).dtype for name in ("tf32", "bf16", "fp16")] == [None, torch.bfloat16, torch.float16]
    with pytest.raises(ValueError, match=r"train\.precision=tf32 needs a GPU of sm_80 or newer, the device is cpu"):
        set_precision(Train(precision="tf32"), "cpu")


def test_deterministic_mode_tells_cublas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    try:
        set_precision(Train(), "cpu")
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ
        set_precision(Train(deterministic=True), "cpu")
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"  # one of the two that torch's manual names
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")  # the other, chosen by the user
        set_precision(Train(deterministic=True), "cpu")
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    finally:
        set_precision(Train(), "cpu")


# --- running average ---


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_average_follows_the_weights_and_not_a_skipped_step(name: str) -> None:
    weight, average = (Parameter(torch.linspace(-1, 1, 24).view(4, 6)) for _ in range(2))
    chosen = Optimizer(name=name)  # type: ignore[arg-type]
    updater = OptimizerStep([weight], chosen, "cpu", matrices=[weight], average=[average], average_decay=0.9)
    expected = average.detach().double()
    for index in range(8):
        updater.gradients[0].copy_(torch.linspace(-0.3, 0.4, 24).view(4, 6).cos() * (index + 1))
        if index == 4:
            updater.gradients[0][1, 2] = float("nan")
        updater.loss.fill_(1.0)
        assert bool(updater.step(torch.tensor(1e-2))) == (index == 4)
        if index != 4:
            expected = 0.9 * expected + 0.1 * weight.detach().double()
    assert torch.allclose(average.double(), expected, rtol=1e-6)
    assert not torch.allclose(average, weight, rtol=1e-3)


# --- a whole run ---

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
batch_size = 2
log_every = 4
validate_every = 6
checkpoint_every = 2
device = "cpu"
compile = false
"""


@pytest.fixture
def _here(tmp_path: Path, photo: Pixels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_crops_of(photo, Path("hr"))
    Path("tiny.toml").write_text(TINY, encoding="utf-8")


def train(*settings: str, run: str = "run", resume: bool = False) -> int:
    given = [f"--{setting}" for setting in settings]
    return main(["train", "tiny.toml", "--run", run, *given, *(["--resume"] if resume else [])])


@pytest.mark.usefixtures("_here")
def test_one_bad_batch_is_skipped_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its loss is NaN; the run goes on as if it had not been there, and says which images it held."""
    whole = TrainStep.__call__

    def with_a_bad_batch(step: TrainStep, batch: Batch[Samples]) -> Any:
        if batch.step == 5:
            assert batch.samples.noise is None
            noise = torch.full((2, 3, 8, 8), float("nan"))
            batch = batch._replace(samples=batch.samples._replace(noise=noise))
        return whole(step, batch)

    monkeypatch.setattr(TrainStep, "__call__", with_a_bad_batch)
    assert train() == 0
    said = capsys.readouterr().out
    assert said.count("skipped step") == 1
    assert "student skipped step 6: loss nan; images hr/" in said
    rows = [json.loads(line) for line in Path("run/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["skipped"] for row in rows if "skipped" in row] == [0, 1, 1]
    assert all(np.isfinite(row["loss"]) for row in rows if "loss" in row)


@pytest.mark.usefixtures("_here")
def test_the_averaged_weights_are_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("train.ema_decay=0.5", "train.keep_checkpoints=3") == 0
    folder = Path("run/checkpoints")
    kept = sorted(path.name for path in folder.glob("step-*"))
    assert kept == [f"step-{step:08d}.{kind}" for step in (8, 10, 12) for kind in ("safetensors", "state.pt")]
    states = {step: torch.load(folder / f"step-{step:08d}.state.pt", weights_only=True) for step in (8, 10, 12)}
    used = load_network(folder / "last.safetensors", "cpu").state_dict()
    for key, value in states[12]["averaged"].items():
        assert torch.equal(used[key], value)
    assert not torch.equal(states[12]["averaged"]["head.0.weight"], states[12]["network"]["head.0.weight"])
    assert "student 12 steps in " in capsys.readouterr().out
    assert train("train.ema_decay=0.5", "train.keep_checkpoints=3", resume=True) == 0
    assert " steps in " not in capsys.readouterr().out  # there is nothing left to do


@pytest.mark.slow
@pytest.mark.usefixtures("_here")
@pytest.mark.parametrize(
    "settings",
    [
        ("train.precision=fp16", "train.ema_decay=0.5"),
        ("train.precision=fp16", "train.ema_decay=0.5", "train.micro_batch=1", "optimizer.name=muon"),
        ("train.micro_batch=1",),
    ],
)
def test_every_state_survives_a_resume(settings: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradient scale, the averages and the parts: what was interrupted ends in the same bits."""
    assert train(*settings, run="unbroken") == 0
    whole = TrainStep.__call__

    def stopped(step: TrainStep, batch: Batch[Samples]) -> Any:
        if batch.step == 7:
            raise KeyboardInterrupt
        return whole(step, batch)

    with monkeypatch.context() as patch:
        patch.setattr(TrainStep, "__call__", stopped)
        assert train(*settings, run="broken") == 130
    assert train(*settings, run="broken", resume=True) == 0
    for part in ("metrics.jsonl", "checkpoints/last.safetensors", "checkpoints/best.safetensors"):
        assert Path("broken", part).read_bytes() == Path("unbroken", part).read_bytes(), part
    if "train.precision=fp16" in settings:
        scales = [
            torch.load(f"{run}/checkpoints/last.state.pt", weights_only=True)["updater"]
            for run in ("broken", "unbroken")
        ]
        assert scales[0]["scale"] == scales[1]["scale"]
        assert scales[0]["good_steps"] == scales[1]["good_steps"] <= 12


@pytest.mark.slow
@pytest.mark.usefixtures("_here")
def test_a_trace_can_be_had(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "tiny.toml", "--run", "run", "--profile"]) == 0
    assert "trace of 3 steps: run/trace.json" in capsys.readouterr().out
    events = json.loads(Path("run/trace.json").read_text(encoding="utf-8"))["traceEvents"]
    assert sum("conv" in event.get("name", "") for event in events) > 3 * 5


def test_memory_that_runs_out_says_what_helps() -> None:
    advice = r"out of memory .*set train\.micro_batch below 16.*or train\.precision=bf16"
    with pytest.raises(ValueError, match=advice), explain_oom(Train(batch_size=16)):
        torch.empty(1 << 60, dtype=torch.uint8)
    advice = r"set train\.micro_batch below 4"
    with pytest.raises(ValueError, match=advice), explain_oom(Train(batch_size=16, micro_batch=4)):
        np.empty(1 << 60, dtype=np.uint8)
    with pytest.raises(ValueError, match=r"^out of memory \(of Python's objects\): set "), explain_oom(Train()):
        bytearray(1 << 62)
    with pytest.raises(RuntimeError, match="inconsistent tensor size"), explain_oom(Train()):
        torch.ones(2) @ torch.ones(3)


# --- measuring ---


def test_work_is_counted_from_the_convolutions() -> None:
    network = build(recipe().model, 2)
    patch = 8
    at_lr = 3 * 8 + 2 * 8 * 8 + 8 * 8 + 8 * 32  # head, block, end of the body, upsampler
    expected = 3 * 2 * 9 * patch**2 * (at_lr + 4 * 8 * 3)
    assert training_flops(network, patch) == expected


def test_the_peak_is_measured_once() -> None:
    assert measured_peak("cpu", torch.float32) > 1e9
    assert measured_peak("cpu", torch.float32) == measured_peak("cpu", torch.float32)  # to the last bit


def test_the_stopwatch_shares_out_its_window(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count()
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    watch = Stopwatch("cpu", first=1, steps=2)
    for _ in range(4):
        assert watch.shares() is None
        for stage in ("data", "forward", "backward", "forward", "backward", "optimizer", "other"):
            watch.mark(stage)
    shares = watch.shares()
    assert shares == {"data": 1 / 6, "forward": 2 / 6, "backward": 2 / 6, "optimizer": 1 / 6}
    assert watch.shares() is None


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other allocators are left alone")
def test_a_cpu_keeps_the_memory_that_a_step_frees() -> None:
    """In a process of its own: it cannot be taken back."""
    program = """
        import os
        import torch
        from eco_fast.utils.device import tune_malloc

        def megabytes_left_after(count):
            before = resident()
            [torch.ones(count * 25_000) for _ in range(10)]
            return resident() - before

        def resident():
            with open("/proc/self/statm") as file:
                return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6

        torch.ones(1000).sum()
        freed = megabytes_left_after(200)
        tune_malloc("cpu")
        print(freed, megabytes_left_after(200), *(megabytes_left_after(200) for _ in range(9)))
    """
    made = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, check=True)
    freed, kept, *more = map(float, made.stdout.split())
    assert freed < 20
    assert kept > 180
    assert sum(more[4:]) < 20  # and it is used again, once the blocks lie well
