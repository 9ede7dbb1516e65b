"""The skip rule, the factor on 16-bit gradients, the counters and the log: reference and kernels against Python."""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from eco_fast_kernels import StepRules, StepState, decide_step, decision
from torch import Tensor

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Decide = Callable[[Tensor, Tensor, StepState, StepRules], tuple[Tensor, Tensor]]
SEARCHED, GATHERED, PLACES = 64, 4, 7


@pytest.fixture(params=["reference", "kernels"])
def decide(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Decide:
    """Each implementation; the kernels with blocks so small that few gradients fill several rounds of them."""
    if request.param == "reference":
        return decision.decide_step
    pytest.importorskip("triton")
    from eco_fast_kernels.fused import decide_step as fused

    monkeypatch.setattr(fused, "SEARCHED", SEARCHED)
    monkeypatch.setattr(fused, "GATHERED", GATHERED)
    return fused.launch


@pytest.fixture
def place(decide: Decide, device: str) -> str:
    """Where an implementation takes its tensors."""
    return "cpu" if decide is decision.decide_step else device


def float32(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32))


@dataclass
class Model:
    """The rules with Python's numbers, rounded to float32 where the device has no more."""

    rules: StepRules
    scale: float
    last_accepted: float = 100.0
    skipped: int = 0
    skipped_in_row: int = 0
    good_steps: int = 0
    loss_sum: float = 0.0
    accepted: int = 0
    steps: list[tuple[float, bool]] = field(default_factory=list)

    def allowed(self) -> float:
        """The largest loss that is no spike; the product is rounded."""
        return float32(float32(self.rules.spike_factor) * self.last_accepted)

    def decide(self, gradients: list[float], loss: float) -> tuple[bool, float]:
        inverse_scale = 1 / self.scale
        spike = self.rules.spike_factor > 0 and loss > self.allowed()
        skip = spike or not all(map(math.isfinite, [loss, *gradients]))
        if self.rules.scales:
            if skip and not spike:
                self.scale, self.good_steps = self.scale / 2, 0
            elif self.good_steps + 1 == self.rules.growth_interval:
                self.scale, self.good_steps = self.scale * 2, 0
            else:
                self.good_steps += 1
        self.skipped += skip
        self.skipped_in_row = self.skipped_in_row + 1 if skip else 0
        if not skip:
            self.last_accepted = loss
            self.loss_sum += loss
            self.accepted += 1
        self.steps.append((loss, skip))
        return skip, inverse_scale

    def state(self) -> dict[str, Any]:
        losses, skips = [0.0] * PLACES, [False] * PLACES
        for step, (loss, skip) in enumerate(self.steps):
            losses[step % PLACES], skips[step % PLACES] = loss, skip
        counted = {name: getattr(self, name) for name in StepState._fields if hasattr(self, name)}
        return {**counted, "decided": len(self.steps), "losses": losses, "skips": skips}


def values_of(state: StepState) -> dict[str, Any]:
    return {name: tensor.tolist() for name, tensor in state._asdict().items()}


def same(first: Any, second: Any) -> bool:
    """Equality, in which NaN equals itself."""
    return repr(first) == repr(second)


def random_gradients(numel: int, chance: random.Random) -> Tensor:
    gradients = torch.randn(numel) * 10.0 ** chance.randint(-30, 30)
    if chance.random() < 0.2:
        gradients[chance.randrange(numel)] = chance.choice([math.nan, math.inf, -math.inf])
    return gradients


def random_loss(model: Model, chance: random.Random) -> float:
    """Most often near the last one; sometimes a spike, exactly as much as is allowed, or not finite."""
    allowed = model.allowed() or float32(1e30)
    above = float(torch.nextafter(torch.tensor(allowed), torch.tensor(math.inf)))
    usual = float32(model.last_accepted * chance.uniform(0.8, 1.2))
    rare = [allowed, above, 2 * allowed, math.nan, math.inf, -math.inf]
    return usual if chance.random() < 0.6 else chance.choice(rare)


@pytest.mark.parametrize("scales", [False, True])
@pytest.mark.parametrize("spike_factor", [0.0, 5.0, 1.7])
def test_random_courses(decide: Decide, place: str, spike_factor: float, scales: bool) -> None:
    chance = random.Random(f"{spike_factor} {scales}")  # noqa: S311 - no secret
    rules = StepRules(spike_factor, scales, growth_interval=3)
    model, state = Model(rules, scale=2.0**10), StepState.at_start(place, PLACES, scale=2.0**10)
    memory = [tensor.data_ptr() for tensor in state]
    for _ in range(60):
        gradients = random_gradients(chance.choice([1, SEARCHED - 1, SEARCHED, 5 * SEARCHED + 3]), chance)
        loss = random_loss(model, chance)
        skip, inverse_scale = decide(gradients.to(place), torch.tensor(loss, device=place), state, rules)
        assert (skip.dtype, skip.shape, skip.device.type) == (torch.bool, (), place)
        assert (inverse_scale.dtype, inverse_scale.shape, inverse_scale.device.type) == (torch.float32, (), place)
        assert (bool(skip), float(inverse_scale)) == model.decide(gradients.tolist(), loss)
        assert same(values_of(state), {name: model.state()[name] for name in StepState._fields})
    assert [tensor.data_ptr() for tensor in state] == memory
    of_finite_losses = [skip for loss, skip in model.steps if math.isfinite(loss)]
    assert 0 < sum(of_finite_losses) < len(of_finite_losses)
    assert (model.scale != 2.0**10) == scales


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("numel", [1, SEARCHED, 6 * SEARCHED + 2, 70 * SEARCHED])
def test_one_bad_gradient_is_found_wherever_it_is(decide: Decide, place: str, numel: int, bad: float) -> None:
    good = torch.full((numel,), 3e38) * torch.randn(numel).sign()  # large, but finite: even their sum is not
    for element in {0, numel // 2, numel - 1}:
        gradients = good.clone()
        state = StepState.at_start(place, 1)
        assert not decide(gradients.to(place), torch.tensor(1.0, device=place), state, StepRules())[0]
        gradients[element] = bad
        assert decide(gradients.to(place), torch.tensor(1.0, device=place), state, StepRules())[0]


def test_gradients_that_begin_and_end_anywhere(decide: Decide, place: str) -> None:
    """What lies around them is none of theirs."""
    memory = torch.full((3 * SEARCHED,), math.nan, device=place)
    for start, stop in ((1, 2), (3, SEARCHED + 3), (2, 2 * SEARCHED + 5)):
        memory[start:stop] = 1.0
        state = StepState.at_start(place, 1)
        assert not decide(memory[start:stop], torch.tensor(1.0, device=place), state, StepRules())[0]
        assert decide(memory[start : stop + 1], torch.tensor(1.0, device=place), state, StepRules())[0]
        memory.fill_(math.nan)


def test_gradients_and_loss_are_left_alone(decide: Decide, place: str) -> None:
    gradients, loss = torch.randn(2 * SEARCHED + 1, device=place), torch.tensor(3.0, device=place, requires_grad=True)
    before = gradients.clone()
    skip, _ = decide(gradients, loss, StepState.at_start(place, 1), StepRules())
    assert torch.equal(gradients, before)
    assert loss.item() == 3
    assert not skip


def test_a_spike_with_an_overflow_is_a_spike(decide: Decide, place: str) -> None:
    """The factor is left alone, as the trainer has always done it: the loss explains the gradients."""
    rules, state = StepRules(spike_factor=5.0, scales=True), StepState.at_start(place, 1, scale=8.0)
    gradients = torch.full((3,), math.inf, device=place)
    assert decide(gradients, torch.tensor(501.0, device=place), state, rules)[0]
    assert (float(state.scale), int(state.good_steps)) == (8, 1)
    assert decide(gradients, torch.tensor(499.0, device=place), state, rules)[0]
    assert (float(state.scale), int(state.good_steps)) == (4, 0)


def test_the_scale_doubles_after_2000_good_steps_as_in_torch(decide: Decide, place: str) -> None:
    rules, state = StepRules(scales=True), StepState.at_start(place, 1, scale=2.0**16)
    state.good_steps.fill_(1998)
    gradients, loss = torch.ones(3, device=place), torch.tensor(1.0, device=place)
    for factor in (2.0**16, 2.0**16, 2.0**17):
        _, inverse_scale = decide(gradients, loss, state, rules)
        assert float(inverse_scale) == 1 / factor
    assert (float(state.scale), int(state.good_steps)) == (2.0**17, 1)


def test_the_sum_of_losses_has_the_digits_of_float64(decide: Decide, place: str) -> None:
    state = StepState.at_start(place, 1)
    state.loss_sum.fill_(2.0**40)
    for _ in range(3):
        decide(torch.ones(1, device=place), torch.tensor(0.1, device=place), state, StepRules())
    assert float(state.loss_sum) == 2.0**40 + float32(0.1) + float32(0.1) + float32(0.1)
    assert int(state.accepted) == 3


def test_the_start() -> None:
    state = StepState.at_start("cpu", 3, scale=4.0)
    assert values_of(state) == {
        "last_accepted": 100.0, "skipped": 0, "skipped_in_row": 0, "scale": 4.0, "good_steps": 0, "loss_sum": 0.0,
        "accepted": 0, "decided": 0, "losses": [0.0] * 3, "skips": [False] * 3,
    }  # fmt: skip


def test_the_op_takes_the_reference_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    monkeypatch.setattr(decision, "decide_step", lambda *arguments: called.append(arguments))
    arguments = torch.ones(3), torch.tensor(1.0), StepState.at_start("cpu", 2), StepRules()
    decide_step(*arguments)
    assert called == [arguments]


def test_real_blocks(device: str) -> None:
    fused = pytest.importorskip("eco_fast_kernels.fused.decide_step")
    numel = 2 * fused.SEARCHED + 5
    for element in (None, 0, fused.SEARCHED - 1, fused.SEARCHED, numel - 1):
        gradients = torch.randn(numel, device=device)
        if element is not None:
            gradients[element] = math.nan
        state = StepState.at_start(device, 2)
        skip, _ = fused.launch(gradients, torch.tensor(1.0, device=device), state, StepRules())
        assert bool(skip) == (element is not None)
