"""The LAMB kernels against a float64 transcription of the formula: at most twice the error of plain torch."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from eco_fast_kernels import LambOptions, reference
from eco_fast_kernels.fused import lamb_step as fused
from torch import Tensor

pytestmark = pytest.mark.usefixtures("poisoned_memory")

Place = Callable[[Tensor], Tensor]
GROUPS = ("parameters", "exp_avg", "exp_avg_sq", "average")
BETAS, EPSILON, NORM_CLAMP, AVERAGE_DECAY = (0.9, 0.99), 1e-6, 10.0, 0.999
OPTIONS = LambOptions(*BETAS, EPSILON, norm_clamp=NORM_CLAMP, average_decay=AVERAGE_DECAY)


@dataclass
class Weights:
    """Parameters with all that a step reads and writes, on one device."""

    parameters: list[Tensor]
    device: str
    place: Place = torch.clone
    """Puts a tensor of the same layout somewhere in memory."""
    exp_avg: list[Tensor] = field(init=False)
    exp_avg_sq: list[Tensor] = field(init=False)
    average: list[Tensor] = field(init=False)
    step_count: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.parameters = [self.place(parameter.to(self.device)) for parameter in self.parameters]
        self.exp_avg = [self.place(torch.zeros_like(parameter)) for parameter in self.parameters]
        self.exp_avg_sq = [self.place(torch.zeros_like(parameter)) for parameter in self.parameters]
        self.average = [self.place(parameter) for parameter in self.parameters]
        self.step_count = torch.tensor(0, device=self.device)

    def step(self, gradients: list[Tensor], *, average: bool = False, skip: bool = False, **options: Any) -> bool:
        """One step by the kernels, or by the reference of float32 on the CPU; returns whether it was skipped."""
        skipped = torch.tensor(skip, device=self.device)
        tensors = [self.place(gradient.to(self.device)) for gradient in gradients]
        scalars = {
            name: torch.tensor(options.pop(name, usual), device=self.device)
            for name, usual in (("learning_rate", 0.01), ("inverse_scale", 1.0))
        }
        averages = self.average if average else []
        self.run(tensors, averages, OPTIONS._replace(**options), skip=skipped, step_count=self.step_count, **scalars)
        return bool(skipped)

    def run(self, gradients: list[Tensor], average: list[Tensor], options: LambOptions, **scalars: Any) -> None:
        fused.launch(self.parameters, gradients, self.exp_avg, self.exp_avg_sq, average, options=options, **scalars)

    def all(self) -> list[Tensor]:
        return [*self.parameters, *self.exp_avg, *self.exp_avg_sq, *self.average]

    def bits(self) -> list[Tensor]:
        return [tensor.detach().cpu().clone().view(torch.int32) for tensor in self.all()]


class Plain(Weights):
    """The same by the reference, in float32."""

    def run(self, gradients: list[Tensor], average: list[Tensor], options: LambOptions, **scalars: Any) -> None:
        lists = self.parameters, gradients, self.exp_avg, self.exp_avg_sq
        reference.lamb_step(*lists, options=options, average=average, **scalars)


class Exact:
    """The same in float64, element by element as the formula has it."""

    def __init__(self, parameters: list[Tensor]) -> None:
        self.parameters = [parameter.double() for parameter in parameters]
        self.exp_avg = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.exp_avg_sq = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.average = [parameter.clone() for parameter in self.parameters]
        self.sizes = dict.fromkeys(GROUPS, [0.0] * len(parameters))
        """The largest norm that each tensor has had."""
        self._keep_sizes()

    def _keep_sizes(self) -> None:
        for group in GROUPS:
            norms = [float(tensor.norm()) for tensor in getattr(self, group)]
            self.sizes[group] = [max(pair) for pair in zip(self.sizes[group], norms, strict=True)]

    def step(
        self,
        gradients: list[Tensor],
        *,
        average: bool = False,
        skip: bool = False,
        learning_rate: float = 0.01,
        inverse_scale: float = 1.0,
        weight_decay: float = 0.0,
        clip_value: float | None = None,
    ) -> None:
        if skip or any(not gradient.isfinite().all() for gradient in gradients):
            return
        rate = float(torch.tensor(learning_rate))  # as the device has it
        for index, gradient in enumerate(gradients):
            g = gradient.double() * inverse_scale
            if clip_value is not None:
                g = g.clamp(-clip_value, clip_value)
            m = self.exp_avg[index] = BETAS[0] * self.exp_avg[index] + (1 - BETAS[0]) * g
            v = self.exp_avg_sq[index] = BETAS[1] * self.exp_avg_sq[index] + (1 - BETAS[1]) * g * g
            p = self.parameters[index]
            update = m / (v.sqrt() + EPSILON) + weight_decay * p
            weight_norm, update_norm = (
                min(float((p * p).sum().sqrt()), NORM_CLAMP),
                float((update * update).sum().sqrt()),
            )
            ratio = weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
            self.parameters[index] = p - rate * ratio * update
            if average:
                mean = self.average[index]
                self.average[index] = AVERAGE_DECAY * mean + (1 - AVERAGE_DECAY) * self.parameters[index]
        self._keep_sizes()


def channels_last(*shape: int) -> Tensor:
    return torch.randn(shape).contiguous(memory_format=torch.channels_last)


def many_parameters(block: int) -> list[Tensor]:
    """About thirty tensors: single numbers, kernels, biases, sizes around whole blocks and chunks (two blocks here)."""
    sizes = (1, 2, block - 1, block, block + 1, 2 * block, 2 * block + 1, 5 * block + 7)
    return [
        *(torch.randn(size) for size in sizes),
        *(torch.zeros(size) for size in (1, 4, block + 3)),  # fresh biases: a norm of 0
        *(torch.randn(4, 3) * weight for weight in (1e-6, 1e-3, 1.0, 20.0)),
        *(channels_last(*shape) for shape in ((8, 3, 3, 3), (3, 8, 3, 3), (8, 4, 1, 1), (1, 8, 3, 3), (4, 1, 1, 1))),
        *(torch.randn(shape) for shape in ((3, 5), (2, 3, 4), (2, 2, 3, 3), ())),
        torch.full((1,), 9.99),
        torch.full((1,), 10.01),
        torch.full((4,), 5.0),  # of norm 10
    ]


def gradients_like(parameters: list[Tensor]) -> list[Tensor]:
    """Noise of very different sizes; the third tensor never gets any."""
    gradients = [torch.randn_like(p) * 10.0 ** (index % 5 - 3) for index, p in enumerate(parameters)]
    gradients[2].zero_()
    return gradients


def check(made: Weights, plain: Weights, exact: Exact) -> None:
    """Each tensor's error, relative to its norm, is at most twice that of the worst of plain torch's tensors.

    The worst, because a tensor of one element may come out exact by chance; and the largest norm that it has had,
    because the roundings of steps that cancel stay.
    """
    for group in GROUPS:
        errors, of_plain = (
            [
                float((tensor.cpu().double() - true).norm()) / (size or 1e-300)
                for tensor, true, size in zip(
                    getattr(weights, group), getattr(exact, group), exact.sizes[group], strict=True
                )
            ]
            for weights in (made, plain)
        )
        assert max(errors) <= 2 * max(of_plain), group
        assert max(of_plain) < 1e-6, group


def run_and_check(
    device: str, parameters: list[Tensor], steps: int, options: dict[str, Any], place: Place = torch.clone
) -> None:
    """Some steps by all three, the fifth of which is skipped."""
    made, plain, exact = Weights(parameters, device, place), Plain(parameters, "cpu"), Exact(parameters)
    for step in range(steps):
        gradients = gradients_like(parameters)
        if step == 4:
            gradients[-1].view(-1)[-1] = float("nan")
        for weights in (made, plain):
            assert weights.step([gradient.clone() for gradient in gradients], **options) == (step == 4)
        exact.step(gradients, **options)
    assert int(made.step_count) == int(plain.step_count) == steps - (steps > 4)
    check(made, plain, exact)


@pytest.fixture
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of two blocks, so that small tensors have several."""
    monkeypatch.setattr(fused, "BLOCK", 64)
    monkeypatch.setattr(fused, "CHUNK", 128)


ALL_OPTIONS: dict[str, Any] = {
    "average": True,
    "weight_decay": 0.1,
    "clip_value": 0.05,
    "inverse_scale": 0.25,
    "learning_rate": 0.02,
}


@pytest.mark.usefixtures("_small_blocks")
def test_20_steps_of_many_tensors(device: str) -> None:
    run_and_check(device, many_parameters(64), 20, ALL_OPTIONS)


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("option", [None, *ALL_OPTIONS])
def test_options_one_by_one(device: str, option: str | None) -> None:
    options = {} if option is None else {option: ALL_OPTIONS[option]}
    run_and_check(device, many_parameters(64)[4::3], 3, options)


def test_real_blocks_and_chunks(device: str) -> None:
    sizes = (1, fused.BLOCK + 1, fused.CHUNK, 2 * fused.CHUNK + fused.BLOCK + 5)
    run_and_check(device, [torch.randn(size) * 0.03 for size in sizes], 2, ALL_OPTIONS)


def test_a_tensor_of_more_chunks_than_one_read_takes(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BLOCK", 2)
    monkeypatch.setattr(fused, "CHUNK", 2)
    run_and_check(device, [torch.randn(3), torch.randn(2 * 131 - 1), torch.randn(1)], 1, {})


# --- trust ratios, by hand ---


def test_by_hand(device: str, lamb_case: Any) -> None:
    weights = Weights([torch.tensor(lamb_case.start)], device)
    options: dict[str, Any] = {"learning_rate": 0.1, "beta1": 0.0, "beta2": 0.0, "epsilon": 1e-12}
    weights.step([torch.tensor(lamb_case.gradient)], **options, clip_value=lamb_case.clip_value)
    assert weights.parameters[0].tolist() == pytest.approx(lamb_case.expected, rel=1e-6)
    assert weights.exp_avg[0].tolist() == pytest.approx(lamb_case.clipped, rel=1e-6)
    assert weights.exp_avg_sq[0].tolist() == pytest.approx([value**2 for value in lamb_case.clipped], rel=1e-6)


# --- skipped steps ---


def some_weights(device: str, place: Place = torch.clone) -> Weights:
    """Six chunks, after one step."""
    weights = Weights([torch.randn(5), torch.randn(64), torch.randn(260), channels_last(2, 3, 2, 2)], device, place)
    assert not weights.step(some_gradients(), average=True)
    return weights


def some_gradients() -> list[Tensor]:
    return [torch.randn(5), torch.randn(64), torch.randn(260), channels_last(2, 3, 2, 2)]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize(
    ("tensor", "element", "bad"),
    [
        (0, 0, float("nan")),
        (0, 4, float("inf")),
        (1, 63, float("nan")),
        (2, 31, -float("inf")),
        (2, 128, float("nan")),
        (2, 259, float("nan")),
        (3, 23, float("nan")),
    ],
)
def test_one_bad_gradient_leaves_every_bit(device: str, tensor: int, element: int, bad: float) -> None:
    weights, gradients = some_weights(device), some_gradients()
    before = weights.bits()
    gradients[tensor].as_strided((gradients[tensor].numel(),), (1,))[element] = bad
    assert weights.step(gradients, **ALL_OPTIONS)
    assert int(weights.step_count) == 1
    assert all(torch.equal(after, bits) for after, bits in zip(weights.bits(), before, strict=True))


@pytest.mark.usefixtures("_small_blocks")
def test_a_step_that_is_to_be_skipped_leaves_every_bit(device: str) -> None:
    weights = some_weights(device)
    before = weights.bits()
    assert weights.step(some_gradients(), skip=True, **ALL_OPTIONS)
    assert int(weights.step_count) == 1
    assert all(torch.equal(after, bits) for after, bits in zip(weights.bits(), before, strict=True))
    # and without the skip, every tensor moves
    assert not weights.step(some_gradients(), **ALL_OPTIONS)
    assert int(weights.step_count) == 2
    assert not any(torch.equal(after, bits) for after, bits in zip(weights.bits(), before, strict=True))


def test_more_chunks_than_one_block_of_the_decision(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BLOCK", 2)
    monkeypatch.setattr(fused, "CHUNK", 2)
    parameter, gradient = torch.randn(9), torch.randn(9)
    for element in (None, 0, 5, 8):
        weights = Weights([parameter], device)
        bad = gradient.clone()
        if element is not None:
            bad[element] = float("nan")
        assert weights.step([bad]) == (element is not None)
        assert torch.equal(weights.parameters[0].cpu(), parameter) == (element is not None)


@pytest.mark.usefixtures("_small_blocks")
def test_gradients_that_are_large_but_finite_are_no_reason_to_skip(device: str) -> None:
    weights = some_weights(device)
    gradients = [gradient.sign() * 3e38 for gradient in some_gradients()]
    assert not weights.step(gradients, clip_value=0.1)
    assert all(tensor.isfinite().all() for tensor in weights.all())


# --- memory ---


@pytest.mark.usefixtures("_small_blocks")
def test_same_input_same_bits(device: str) -> None:
    parameters = many_parameters(64)[::2]
    gradients = gradients_like(parameters)
    first, second = Weights(parameters, device), Weights(parameters, device)
    for weights in (first, second):
        weights.step(gradients, **ALL_OPTIONS)
    assert all(torch.equal(one, other) for one, other in zip(first.bits(), second.bits(), strict=True))


@pytest.mark.usefixtures("_small_blocks")
def test_what_is_not_to_change_does_not(device: str) -> None:
    weights = Weights([torch.randn(70)], device)
    gradient = torch.randn(70, device=device)
    given, average = gradient.clone(), weights.average[0].clone()
    rate, scale = (torch.tensor(value, device=device) for value in (0.01, 0.5))
    options = OPTIONS._replace(weight_decay=0.1, clip_value=0.1)
    keep = torch.tensor(False, device=device)
    weights.run(
        [gradient], [], options, learning_rate=rate, inverse_scale=scale, skip=keep, step_count=weights.step_count
    )
    assert torch.equal(gradient, given)
    assert torch.equal(weights.average[0], average)
    assert (float(rate), float(scale)) == (float(torch.tensor(0.01)), 0.5)


def displaced(tensor: Tensor) -> Tensor:
    """The same tensor, four bytes behind a multiple of 16, between two guards."""
    memory = torch.full((tensor.numel() + 2,), 1234.5, device=tensor.device)
    place = memory.as_strided(tensor.shape, tensor.stride(), 1)
    assert place.data_ptr() % fused.TABLE_ALIGNMENT == 4
    return place.copy_(tensor)


@pytest.mark.usefixtures("_small_blocks")
def test_addresses_that_are_not_aligned(device: str) -> None:
    run_and_check(device, many_parameters(64)[::2], 2, ALL_OPTIONS, displaced)
    weights = some_weights(device, displaced)
    weights.step(some_gradients(), **ALL_OPTIONS)
    for tensor in weights.all():
        memory = tensor.as_strided((tensor.numel() + 2,), (1,), 0)
        assert memory[[0, -1]].tolist() == [1234.5, 1234.5]


class Recorder:
    """Stands in for a kernel and keeps its compile-time arguments."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda *_, **constants: self.seen.append(constants)


@pytest.mark.parametrize("column", range(6))
def test_one_address_that_is_not_aligned_is_enough(device: str, column: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kernels = ("find_nonfinite_kernel", "decide_skip_kernel", "moments_kernel", "update_kernel")
    recorders = [Recorder() for _ in kernels]
    for name, recorder in zip(kernels, recorders, strict=True):
        monkeypatch.setattr(fused, name, recorder)
    weights, gradients = Weights([torch.randn(8), torch.randn(8)], device), [torch.randn(8), torch.randn(8)]
    lists = [weights.parameters, gradients, weights.exp_avg, weights.exp_avg_sq, weights.average]
    if column < len(lists):
        lists[column][1] = displaced(lists[column][1])
        gradients = [gradient.to(device) for gradient in gradients]
    weights.place = torch.Tensor.contiguous  # leaves tensors where they are
    weights.step(gradients, average=True)
    for recorder, name in zip(recorders, kernels, strict=True):
        assert [constants.get("ALIGNED") for constants in recorder.seen] == [
            None if name == "decide_skip_kernel" else column == len(lists)
        ]
