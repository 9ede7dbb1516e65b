"""The trainer on a GPU: against itself on a CPU, its graph against step by step, and resuming."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from eco_fast.config import Config, EdsrModel, Model, RcanModel, RrdbModel, SwinirModel
from eco_fast.data.batch import BatchPlanner
from eco_fast.data.images import Pixels
from eco_fast.data.open_loader import open_loader
from eco_fast.models import Network, build, compile_blocks
from eco_fast.training.loop import train_network
from eco_fast.training.memory import room_beside
from eco_fast.training.optim import optimizer_step
from eco_fast.training.profiling import forget_peak_memory, measured_peak, peak_memory
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.step_graph import choose_recorder
from eco_fast.training.telemetry import Telemetry
from eco_fast.training.validation import ValidationSets
from eco_fast.utils.files import sha256_of
from tests.gpu.conftest import recipe
from tests.helpers import source

pytestmark = pytest.mark.gpu

LAMB = {"optimizer__name": "lamb", "optimizer__learning_rate": 1e-4}
MUON = {"optimizer__name": "muon", "optimizer__learning_rate": 1e-3}
Course = tuple[list[float], TrainingState]
"""The loss of every step, and how it ended."""


def course(made: Config, hr: list[Pixels], sr: list[Pixels]) -> Course:
    """A whole training, without a run folder."""
    device = made.train.device
    state = TrainingState(made, device, None, "test")
    room = room_beside(state)
    with open_loader(made, source(hr), source(sr), 0, device=device, room=room, label="test") as loader:
        step = TrainStep(state, loader.planner.count, recorder=choose_recorder(made.train, made.optimizer, device)[0])
        return [step(batch).item() for batch in loader], state


def weights(state: TrainingState) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in state.network.parameters()])


def assert_same_bits(first: Course, second: Course) -> None:
    assert first[0] == second[0]
    assert torch.equal(weights(first[1]), weights(second[1]))


@pytest.mark.parametrize("changes", [{}, LAMB], ids=["adam", "lamb"])
def test_thirty_steps_are_the_cpus(changes: dict[str, Any], hr: list[Pixels], sr: list[Pixels]) -> None:
    on_gpu, _ = course(recipe(**changes), hr, sr)
    on_cpu, _ = course(recipe(**changes, train__device="cpu"), hr, sr)
    assert on_gpu == pytest.approx(on_cpu, rel=1e-4)


@pytest.mark.parametrize("precision", ["bf16", "fp16", "tf32"])
def test_other_precisions_stay_near_float32(
    precision: str, hr: list[Pixels], sr: list[Pixels], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optimizer_step, "FIRST_SCALE", 16.0)  # from 2**16 on, the first steps overflow
    exact, _ = course(recipe(), hr, sr)
    rough, _ = course(recipe(train__precision=precision), hr, sr)
    assert rough == pytest.approx(exact, rel=1e-2)
    assert rough != exact


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize(
    "changes",
    [{}, {**LAMB, "train__ema_decay": 0.9}, {**MUON, "train__ema_decay": 0.9}, {"train__compile": True}],
    ids=["adam", "lamb", "muon", "compiled"],
)
def test_a_graph_is_the_steps_one_by_one(
    changes: dict[str, Any], precision: str, hr: list[Pixels], sr: list[Pixels]
) -> None:
    made = [recipe(**changes, train__precision=precision, train__graph=graph) for graph in (True, False)]
    assert_same_bits(course(made[0], hr, sr), course(made[1], hr, sr))


def test_the_same_seed_gives_the_same_bits(hr: list[Pixels], sr: list[Pixels]) -> None:
    made = recipe(train__precision="bf16", train__compile=True)
    assert_same_bits(course(made, hr, sr), course(made, hr, sr))


def test_a_batch_of_nan_changes_nothing(hr: list[Pixels], sr: list[Pixels], monkeypatch: pytest.MonkeyPatch) -> None:
    unspoilt = BatchPlanner._noise

    def noise(planner: BatchPlanner, step: int) -> Tensor:
        return unspoilt(planner, step) * (math.nan if step == 17 else 1)

    monkeypatch.setattr(BatchPlanner, "_noise", noise)
    losses, state = course(recipe(data__noise_sigma=3.0), hr, sr)
    assert [step for step, loss in enumerate(losses) if math.isnan(loss)] == [17]
    assert int(state.updater.counters.skipped) == 1
    assert weights(state).isfinite().all()


@pytest.mark.parametrize("changes", [LAMB, MUON], ids=["lamb", "muon"])
def test_a_run_that_was_stopped_resumes_to_the_same_bits(
    changes: dict[str, Any], hr: list[Pixels], sr: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = recipe(**changes, train__checkpoint_every=10, train__log_every=7, train__ema_decay=0.9)

    def train(name: str, *, resume: bool = False) -> str:
        with RunFolder(tmp_path / name, made, resume=resume) as run:
            train_network(run, source(hr), source(sr), ValidationSets())
        return sha256_of(run.checkpoint("last"))

    unbroken = train("unbroken")
    add = Telemetry.add

    def stop(telemetry: Telemetry, step: int) -> None:
        add(telemetry, step)
        if step == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Telemetry, "add", stop)
        with pytest.raises(KeyboardInterrupt):
            train("broken")
    assert train("broken", resume=True) == unbroken


NETWORKS: dict[str, Model] = {
    "edsr": EdsrModel(features=16, blocks=2),
    "rcan": RcanModel(features=16, groups=1, blocks=2, reduction=4),
    "rrdb": RrdbModel(features=16, blocks=1, growth=8),
    "swinir": SwinirModel(features=24, depths=(2,), heads=(2,), upsampler="pixelshuffledirect", drop_path=0),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_family_computes_what_float64_does(
    name: str, compiled_is_as_exact_as_eager: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    network = build(NETWORKS[name], 2).to("cuda").train()
    network.to(memory_format=network.memory_format)  # type: ignore[call-overload]
    lr = torch.rand(2, 3, 16, 16, device="cuda").contiguous(memory_format=torch.channels_last)

    def compile_it(network: Network) -> None:
        if network.repeated_block is None:
            network.compile(fullgraph=True, dynamic=False)
        else:
            compile_blocks(network)

    graphs = 2 if name == "swinir" else 1  # a block on the grid and a shifted one
    compiled_is_as_exact_as_eager(network, lr, compile_it=compile_it, graphs=graphs, slack=1e-5)


def test_the_probe_of_the_peak_gives_its_memory_back() -> None:
    before = torch.cuda.memory_allocated()
    assert measured_peak("cuda:0", torch.float32) > 1e11
    forget_peak_memory("cuda:0")
    assert peak_memory("cuda:0") * 1e9 - before < 2**27  # what the libraries keep to work with
