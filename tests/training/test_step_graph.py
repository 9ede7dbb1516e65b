"""The recorded step: what is replayed follows everything that changes from step to step.

A CUDA graph repeats operators on the same memory, and with the numbers that Python had at the recording. `Recording`
does so on a CPU. Sixty steps in which alpha, learning rate, crops, noise, left-out branches, the factor on gradients
and the skip rule change are compared, bit by bit, with steps that are made one by one from the plain loader's batches.
"""

import gc
import math
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.batch import BatchPlanner
from eco_fast.data.device_loader import DeviceLoader
from eco_fast.data.feeds import Feed, ResidentImages, StagedCrops
from eco_fast.data.images import Pixels
from eco_fast.data.sources import sizes_of
from eco_fast.training import step_graph
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.step_graph import WARM_UP, choose_recorder
from tests.helpers import READS_THE_DEVICE, leaves, plain_loader, source

STEPS = 60


class Recording(TorchDispatchMode):
    """What a CUDA graph keeps of some work: its operators, the memory that they used, and every number as it was."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert function.overloadpacket.__name__ not in READS_THE_DEVICE, function
        result = function(*args, **(kwargs or {}))
        self.made.append((function, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        """Do it again, results to where they were."""
        for function, args, kwargs, result in self.made:
            again = function(*args, **kwargs)
            for new, place in zip(tensors(again), tensors(result), strict=True):
                if new.untyped_storage().data_ptr() != place.untyped_storage().data_ptr():  # neither view nor in place
                    place.copy_(new)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def record(work: Callable[[], None]) -> Callable[[], None]:
    """Work that is made once while it is recorded: its first replay is that."""
    recording = Recording()
    with recording:
        work()
    made = [True]

    def replay() -> None:
        if made:
            made.clear()
        else:
            recording.replay()

    return replay


@pytest.fixture
def images(photo: Pixels) -> list[Pixels]:
    return [photo[index * 40 : index * 40 + 40, 100:160] for index in range(4)]


def recipe(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": {"patch": 8, "noise_sigma": 5.0},
        "model": {"features": 8, "blocks": 1},
        "optimizer": {"schedule": "cosine", "learning_rate": 1e-3, "warmup_steps": 7, "spike_factor": 5.0},
        "train": {"steps": STEPS, "batch_size": 4, "compile": False, "device": "cpu", "ema_decay": 0.9, "log_every": 7},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section] = {**values.get(section, {}), name: value} if name else value
    return config.validate(values, "test")


def device_loader(made: Config, images: list[Pixels], feed: str) -> DeviceLoader:
    hr, sr = source(images[:2]), source(images[2:])
    planner = BatchPlanner(made, sizes_of(hr))
    feeds: dict[str, Feed] = {
        name: ResidentImages(name, one, planner, "cpu") if feed == "resident" else StagedCrops(name, one, planner)
        for name, one in (("hr", hr), ("sr", sr))
    }
    return DeviceLoader(planner, feeds, 0, device="cpu")


SWINIR = {"name": "swinir", "features": 8, "depths": [2], "heads": [2], "window": 4, "patch": 8, "drop_path": 0.5}
CASES: dict[str, dict[str, Any]] = {
    "adam, images on the device": {},
    "lamb, crops from the host": {"optimizer__name": "lamb", "optimizer__clip_value": 0.1},
    "muon, crops from the host": {"optimizer__name": "muon", "optimizer__clip_value": 0.1},
    "micro-batches": {"train__micro_batch": 3, "data__prefetch": 0},
    "16 bits": {"train__precision": "fp16", "optimizer__name": "adamw"},
    "a choice per sample": {"objective__alpha_sample": True},
    "left-out branches": {"model": SWINIR},
    "residual": {"objective__name": "residual", "train__ema_decay": 0.0},
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_a_replayed_course_is_the_course(case: str, images: list[Pixels], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("eco_fast.training.optim.optimizer_step.GROWTH_INTERVAL", 11)
    unspoilt = BatchPlanner._noise

    def noise(planner: BatchPlanner, step: int) -> Tensor:
        factor = {20: math.nan, 31: 1e6, 32: 1e6}.get(step, 1.0)
        return unspoilt(planner, step) * factor

    monkeypatch.setattr(BatchPlanner, "_noise", noise)
    made = recipe(**CASES[case])
    feed = "staged" if "host" in case else "resident"
    states = [TrainingState(made, "cpu", None, "test") for _ in range(2)]
    plain = TrainStep(states[0], made.train.batch_size)
    replayed = TrainStep(states[1], made.train.batch_size, recorder=record)
    single = plain_loader(made, images[:2], images[2:])
    losses = []
    with device_loader(made, images, feed) as loader:
        for batch in loader:
            expected = plain(single.batch_at(batch.step))
            assert torch.equal(replayed(batch), expected) or expected.isnan()
            losses.append(float(expected))
            assert_same(states)
    assert len(losses) == STEPS
    counters = states[1].updater.counters
    assert math.isnan(losses[20])
    assert not losses[31] <= 5 * losses[30]  # in 16 bits not even finite
    assert int(counters.accepted) == STEPS - int(counters.skipped)
    if made.train.precision == "fp16":  # whose factor begins too high here, and grows again
        assert int(counters.skipped) > 3
        assert int(counters.good_steps) < 11
    else:
        assert int(counters.skipped) == 3


def assert_same(states: list[TrainingState]) -> None:
    first, second = ([*tensors(state.state_dict()), *state.updater.counters] for state in states)
    assert len(first) == len(second) > 10
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one.nan_to_num(), other.nan_to_num())


def test_what_python_works_out_would_be_frozen(images: list[Pixels]) -> None:
    """The recording shows it: a step that reads its learning rate as a number does not follow the schedule."""
    made = recipe()
    state = TrainingState(made, "cpu", None, "test")
    rates: list[float] = []

    def step(_: Any) -> None:
        state.updater.learning_rate.fill_(rates[-1])

    graph = step_graph.StepGraph(record)
    loader = device_loader(made, images, "resident")
    seen = []
    for rate in (1.0, 2.0, 3.0, 4.0, 5.0, 6.0):
        rates.append(rate)
        graph(step, loader._samples)
        seen.append(float(state.updater.learning_rate))
    assert seen == [1.0, 2.0, 3.0, 4.0, 4.0, 4.0]
    assert WARM_UP == 3


def test_samples_that_move_are_refused(images: list[Pixels]) -> None:
    made = recipe()
    graph = step_graph.StepGraph(record)
    first, second = (plain_loader(made, images[:2], images[2:]).batch_at(step).samples for step in (0, 1))
    graph(lambda _: None, first)
    with pytest.raises(AssertionError, match="reads what was recorded"):
        graph(lambda _: None, second)


def test_a_graph_ends_with_its_step(images: list[Pixels]) -> None:
    """Its memory is a GPU's: it is the next training's as soon as the step is let go, without a search for circles."""

    class Replay:
        def __call__(self) -> None:
            pass

    made = recipe()
    replay = Replay()
    alive = weakref.ref(replay)
    step = TrainStep(TrainingState(made, "cpu", None, "test"), 4, recorder=lambda work: work() or alive() or work)
    gc.collect()
    gc.disable()
    try:
        with device_loader(made, images, "resident") as loader:
            for batch, _ in zip(loader, range(WARM_UP + 2), strict=False):
                step(batch)
        del replay
        assert alive() is not None
        del step, batch
        assert alive() is None
    finally:
        gc.enable()


def chosen(made: Config, device: str) -> Any:
    return choose_recorder(made.train, made.optimizer, device)


def test_who_records() -> None:
    assert chosen(recipe(), "cpu") == (None, None)
    assert chosen(recipe(), "cuda:1") == (step_graph.record_cuda_graph, None)
    assert chosen(recipe(train__graph=False), "cuda:0")[0] is None
    recorder, why = chosen(recipe(optimizer__name="lamb", optimizer__backend="apex"), "cuda:0")
    assert recorder is None
    assert why == "optimizer.backend=apex asks the host at every step"
    with pytest.raises(ValueError, match=r"train\.graph=true needs a GPU, the device is cpu; take train\.graph=auto"):
        chosen(recipe(train__graph=True), "cpu")
    with pytest.raises(ValueError, match=r"train\.graph=true: optimizer\.backend=apex asks the host"):
        chosen(recipe(train__graph=True, optimizer__name="lamb", optimizer__backend="apex"), "cuda")
