"""The course of alpha and of the learning rate, and the optimizers with the rule that skips bad steps."""

import io
import math
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import pytest
import torch
from eco_fast_kernels import LambOptions
from eco_fast_kernels.reference import lamb_step
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Objective, Optimizer
from eco_fast.config.schedule import learning_rate_at
from eco_fast.data.objective import BlendWeights, alpha_at, blend_weights_at
from eco_fast.training.optim.optimizer_step import OptimizerStep

Name = Literal["adam", "adamw", "lamb", "muon"]
NAMES: tuple[Name, ...] = ("adam", "adamw", "lamb", "muon")
EVERY_OPTIMIZER = pytest.mark.parametrize("name", NAMES)

# --- alpha ---


@pytest.mark.parametrize(
    ("progress", "expected"), [(0.25, 0), (0.30, 0.043), (0.35, 0.119), (0.50, 0.5), (0.65, 0.881), (0.75, 1)]
)
def test_sigmoid_as_published(progress: float, expected: float) -> None:
    assert alpha_at(Objective(), progress) == pytest.approx(expected, abs=5e-4)


def test_sigmoid_is_exact_at_both_ends_and_rises_between() -> None:
    assert {alpha_at(Objective(), float(t)) for t in np.linspace(0, 0.2602, 500)} == {0.0}
    assert {alpha_at(Objective(), float(t)) for t in np.linspace(0.7398, 1, 500)} == {1.0}
    between = [alpha_at(Objective(), float(t)) for t in np.linspace(0.2603, 0.7397, 500)]
    assert 0 < between[0] < 1e-3
    assert 1 - 1e-3 < between[-1] < 1
    assert all(after > before for before, after in pairwise(between))


@pytest.mark.parametrize("shift", [-1.0, 0.5, 2.0])
def test_shift_delays_by_a_tenth_of_the_training(shift: float) -> None:
    for progress in np.linspace(0, 1, 101):
        unshifted = alpha_at(Objective(), float(progress) - 0.1 * shift)
        assert alpha_at(Objective(alpha_shift=shift), float(progress)) == pytest.approx(unshifted, abs=1e-12)


def test_linear_and_constant() -> None:
    for progress in (0.0, 0.1, 0.5, 0.999, 1.0):
        assert alpha_at(Objective(alpha="linear"), progress) == progress
        assert alpha_at(Objective(alpha="constant", alpha_value=0.3), progress) == 0.3
    assert alpha_at(Objective(alpha="linear"), 1.5) == 1
    assert alpha_at(Objective(alpha="linear"), -0.5) == 0


@pytest.mark.parametrize("alpha", ["sigmoid", "linear", "constant"])
def test_mix_of_each_objective(alpha: Literal["sigmoid", "linear", "constant"]) -> None:
    for step in range(0, 1000, 10):
        assert blend_weights_at(Objective(name="vanilla", alpha=alpha), step, 1000) == BlendWeights(1.0, 1.0)
        assert blend_weights_at(Objective(name="kd", alpha=alpha), step, 1000) == BlendWeights(1.0, 0.0)
        assert blend_weights_at(Objective(name="noise_free", alpha=alpha), step, 1000) == BlendWeights(0.0, 0.0)
        eco = Objective(name="eco", alpha=alpha)
        expected = alpha_at(eco, step / 1000)
        assert blend_weights_at(eco, step, 1000) == BlendWeights(expected, expected)


def test_eco_depends_on_the_share_of_the_training() -> None:
    assert blend_weights_at(Objective(), 300, 1000).target == pytest.approx(0.043, abs=5e-4)
    assert blend_weights_at(Objective(), 37_500, 125_000).target == pytest.approx(0.043, abs=5e-4)


@pytest.mark.parametrize(
    ("mix", "reads_hr", "reads_sr"),
    [
        (BlendWeights(1, 1), True, False),
        (BlendWeights(0, 0), False, True),
        (BlendWeights(1, 0), True, True),
        (BlendWeights(0.5, 0.5), True, True),
        (BlendWeights(1e-9, 1e-9), True, True),
        (BlendWeights(1 - 1e-9, 1 - 1e-9), True, True),
    ],
)
def test_what_a_mix_reads(mix: BlendWeights, reads_hr: bool, reads_sr: bool) -> None:
    assert mix.reads_hr is reads_hr
    assert mix.reads_sr is reads_sr


# --- learning rate ---


def torch_schedule(kind: str, base: float, steps: int, step_size: int) -> list[float]:
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=base)
    scheduler = (
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
        if kind == "cosine"
        else torch.optim.lr_scheduler.StepLR(optimizer, step_size, gamma=0.5)
    )
    rates = []
    for _ in range(steps):
        rates.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("kind", ["cosine", "step"])
@pytest.mark.parametrize("steps", [1, 10, 317])
def test_learning_rate_equals_torch(kind: Literal["cosine", "step"], steps: int) -> None:
    config = Optimizer(learning_rate=1.6e-3, schedule=kind, step_size=25)
    made = [learning_rate_at(config, step, steps) for step in range(steps)]
    assert made == pytest.approx(torch_schedule(kind, 1.6e-3, steps, 25), rel=1e-9, abs=1e-12)


def test_cosine_by_hand() -> None:
    config = Optimizer(learning_rate=2.0, schedule="cosine")
    made = [learning_rate_at(config, step, 1000) for step in (0, 250, 500, 750, 1000)]
    assert made == pytest.approx([2, 1 + math.sqrt(0.5), 1, 1 - math.sqrt(0.5), 0], abs=1e-12)


def test_halving_by_hand() -> None:
    config = Optimizer(learning_rate=8e-4, schedule="step", step_size=100)
    made = [learning_rate_at(config, step, 1000) for step in (0, 99, 100, 199, 200, 999)]
    assert made == [8e-4, 8e-4, 4e-4, 4e-4, 2e-4, 8e-4 / 512]


def test_milestones_equal_torch() -> None:
    config = Optimizer(learning_rate=2e-4, schedule="milestones", milestones=(50, 80, 90, 95))
    optimizer = torch.optim.SGD([Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [50, 80, 90, 95], gamma=0.5)
    for step in range(100):
        assert learning_rate_at(config, step, 100) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)
        optimizer.step()
        scheduler.step()


def test_constant_learning_rate() -> None:
    config = Optimizer(learning_rate=3e-4)
    assert {learning_rate_at(config, step, 50) for step in range(50)} == {3e-4}


@pytest.mark.parametrize("kind", ["constant", "cosine", "step"])
def test_warm_up_is_linear_and_continuous(kind: Literal["constant", "cosine", "step"]) -> None:
    config = Optimizer(learning_rate=1e-3, schedule=kind, warmup_steps=20)
    made = [learning_rate_at(config, step, 1000) for step in range(1000)]
    assert made[:20] == pytest.approx([1e-3 * count / 20 for count in range(1, 21)], rel=1e-12)
    assert made[19] == made[20] == max(made) == 1e-3
    if kind == "cosine":
        assert made[20:] == pytest.approx(torch_schedule("cosine", 1e-3, 980, 1), rel=1e-9, abs=1e-12)


# --- updater ---


class Run:
    """A few parameters, an updater, and gradients that depend on the step alone."""

    def __init__(self, config: Optimizer) -> None:
        generator = torch.Generator().manual_seed(1)
        shapes = [(8, 3, 3, 3), (8,), (1,)]
        self.parameters = [Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
        self.updater = OptimizerStep(self.parameters, config, "cpu", matrices=self.parameters[:1])

    def step(self, index: int, loss: float = 10.0, rate: float = 1e-2, bad: float | None = None) -> bool:
        for place, gradient in zip(self.updater.gradients, self.gradients(index), strict=True):
            place.copy_(gradient)
        if bad is not None:
            self.updater.gradients[0][3, 1, 0, 2] = bad
        self.updater.loss.fill_(loss)
        skip = self.updater.step(torch.tensor(rate))
        assert skip.dtype == torch.bool
        assert skip.shape == ()
        return bool(skip)

    def gradients(self, index: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(100 + index)
        return [torch.randn(parameter.shape, generator=generator) * 0.2 for parameter in self.parameters]

    def bits(self) -> list[Tensor]:
        """All weights and everything that the optimizer remembers, in a fixed order."""
        state = self.updater.optimizer.state
        remembered = [entry[key] for entry in state.values() for key in sorted(entry)]
        return [tensor.detach().clone().view(torch.int32) for tensor in (*self.parameters, *remembered)]

    def counters(self) -> tuple[int, int, float]:
        counters = self.updater.counters
        return int(counters.skipped), int(counters.skipped_in_row), float(counters.last_accepted)


def assert_same_bits(first: list[Tensor], second: list[Tensor]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("name", ["adam", "adamw"])
@pytest.mark.parametrize("clip_value", [0.0, 0.1])
def test_adam_equals_torch_in_float64(name: Literal["adam", "adamw"], clip_value: float) -> None:
    run = Run(Optimizer(name=name, betas=(0.8, 0.95), epsilon=1e-6, weight_decay=0.05, clip_value=clip_value))
    exact = [Parameter(parameter.detach().double()) for parameter in run.parameters]
    kind = torch.optim.AdamW if name == "adamw" else torch.optim.Adam
    optimizer = kind(exact, betas=(0.8, 0.95), eps=1e-6, weight_decay=0.05, foreach=False, fused=False)
    for index in range(30):
        rate = 1e-2 * 0.9**index
        assert not run.step(index, rate=rate)
        for group in optimizer.param_groups:
            group["lr"] = rate
        for parameter, gradient in zip(exact, run.gradients(index), strict=True):
            parameter.grad = gradient.double()
        if clip_value:
            torch.nn.utils.clip_grad_value_(exact, clip_value)
        optimizer.step()
    for parameter, expected in zip(run.parameters, exact, strict=True):
        assert (parameter.double() - expected).norm() <= 1e-6 * expected.norm()


@pytest.mark.parametrize("clip_value", [0.0, 0.1])
def test_lamb_has_the_options_of_the_recipe(clip_value: float) -> None:
    run = Run(Optimizer(name="lamb", betas=(0.8, 0.95), epsilon=1e-4, weight_decay=0.05, clip_value=clip_value))
    expected = [parameter.detach().clone() for parameter in run.parameters]
    first, second = ([torch.zeros_like(parameter) for parameter in expected] for _ in range(2))
    for index in range(10):
        rate = 1e-2 * 0.9**index
        assert not run.step(index, rate=rate)
        gradients = run.gradients(index)
        if clip_value:
            gradients = [gradient.clamp(-clip_value, clip_value) for gradient in gradients]
        options, scalars = (
            LambOptions(0.8, 0.95, epsilon=1e-4, weight_decay=0.05),
            map(torch.tensor, (rate, False, 1.0)),
        )
        lamb_step(expected, gradients, first, second, [], options, *scalars)
    for parameter, wanted in zip(run.parameters, expected, strict=True):  # on the CPU another backend's sums
        assert (parameter - wanted).norm() <= 1e-6 * wanted.norm()


@EVERY_OPTIMIZER
@pytest.mark.parametrize("clip_value", [0.0, 0.1])
@pytest.mark.parametrize(
    ("loss", "bad"),
    [
        (10.0, math.nan),
        (10.0, math.inf),
        (10.0, -math.inf),
        (math.nan, None),
        (math.inf, None),
        (-math.inf, None),
    ],
)
def test_a_bad_step_changes_no_bit(name: Name, clip_value: float, loss: float, bad: float | None) -> None:
    run = Run(Optimizer(name=name, clip_value=clip_value, weight_decay=0.01))
    for index in range(3):
        assert not run.step(index, loss=20.0 + index)
    before = run.bits()
    assert len(before) > len(run.parameters)
    assert run.counters() == (0, 0, 22.0)
    assert run.step(3, loss=loss, bad=bad)
    assert run.step(4, loss=loss, bad=bad)
    assert_same_bits(run.bits(), before)
    assert run.counters() == (2, 2, 22.0)

    # the next good step is as if the bad ones had never been
    assert not run.step(5, loss=7.0)
    assert run.counters() == (2, 0, 7.0)
    other = Run(Optimizer(name=name, clip_value=clip_value, weight_decay=0.01))
    for index in (0, 1, 2, 5):
        other.step(index)
    assert_same_bits(run.bits(), other.bits())
    assert run.step(6, bad=math.nan)
    assert run.counters() == (3, 1, 7.0)


@EVERY_OPTIMIZER
def test_a_bad_first_step_changes_no_weight(name: Name) -> None:
    run, other = Run(Optimizer(name=name)), Run(Optimizer(name=name))
    start = [parameter.detach().clone() for parameter in run.parameters]
    assert run.step(0, bad=math.nan)
    for parameter, expected in zip(run.parameters, start, strict=True):
        assert torch.equal(parameter, expected)
    run.step(1)
    other.step(1)
    assert_same_bits(run.bits(), other.bits())


@EVERY_OPTIMIZER
def test_spikes_are_skipped(name: Name) -> None:
    run = Run(Optimizer(name=name, spike_factor=5.0))
    before = [parameter.detach().clone() for parameter in run.parameters]
    assert run.step(0, loss=500.5)  # the last accepted loss starts at 100
    assert run.counters() == (1, 1, 100.0)
    for parameter, expected in zip(run.parameters, before, strict=True):
        assert torch.equal(parameter, expected)
    assert not run.step(1, loss=500.0)  # five times as much is not yet above
    assert not run.step(2, loss=4.0)
    assert run.counters() == (1, 0, 4.0)
    kept = run.bits()
    assert run.step(3, loss=20.5)
    assert run.step(4, loss=60.0)  # 20.5 was not accepted, so it sets no new measure
    assert_same_bits(run.bits(), kept)
    assert run.counters() == (3, 2, 4.0)
    assert not run.step(5, loss=19.5)
    assert run.counters() == (3, 0, 19.5)
    assert not torch.equal(run.bits()[0], kept[0])


def test_without_a_factor_no_loss_is_too_high() -> None:
    run = Run(Optimizer())
    assert not run.step(0, loss=1.0)
    assert not run.step(1, loss=1e30)
    assert run.counters() == (0, 0, float(torch.tensor(1e30)))


@EVERY_OPTIMIZER
def test_state_round_trip_continues_bit_for_bit(name: Name) -> None:
    config = Optimizer(name=name, spike_factor=5.0, clip_value=0.1, weight_decay=0.01)
    whole = Run(config)
    for index in range(4):
        whole.step(index, loss=3.0, rate=1e-2 / (index + 1))
    assert whole.step(4, loss=100.0)

    file = io.BytesIO()
    weights = [parameter.detach() for parameter in whole.parameters]
    torch.save({"weights": weights, "updater": whole.updater.state_dict()}, file)
    file.seek(0)
    saved: dict[str, Any] = torch.load(file)

    resumed = Run(config)
    with torch.no_grad():
        for parameter, value in zip(resumed.parameters, saved["weights"], strict=True):
            parameter.copy_(value)
    resumed.updater.load_state_dict(saved["updater"])
    assert resumed.counters() == whole.counters() == (1, 1, 3.0)
    assert_same_bits(resumed.bits(), whole.bits())
    for run in (whole, resumed):
        assert run.step(5, loss=15.5)  # still measured by the loss accepted before the save
        for index in range(6, 10):
            assert not run.step(index, loss=4.0, rate=1e-2 / (index + 1))
    assert resumed.counters() == whole.counters() == (2, 0, 4.0)
    assert_same_bits(resumed.bits(), whole.bits())


@EVERY_OPTIMIZER
@pytest.mark.parametrize("loaded", [False, True])
def test_the_given_learning_rate_is_used(name: Name, loaded: bool) -> None:
    run = Run(Optimizer(name=name))
    run.step(0)
    if loaded:
        run.updater.load_state_dict(run.updater.state_dict())
    moved = []
    for rate in (0.0, 1e-3, 1e-2):
        before = run.parameters[0].detach().clone()
        run.step(1, rate=rate)
        moved.append(float((run.parameters[0].detach() - before).norm()))
    assert moved[0] == 0
    assert 0 < 5 * moved[1] < moved[2]


@EVERY_OPTIMIZER
def test_frozen_and_unused_parameters_stay(name: Name) -> None:
    parameters = used, unused, frozen = [Parameter(torch.ones(2, 3), requires_grad=index < 2) for index in range(3)]
    updater = OptimizerStep(parameters, Optimizer(name=name), "cpu", matrices=parameters)
    updater.gradients[0].fill_(0.5)
    assert not updater.step(torch.tensor(1e-2))
    assert torch.equal(unused, torch.ones(2, 3))
    assert torch.equal(frozen, torch.ones(2, 3))
    assert not torch.equal(used, torch.ones(2, 3))
