"""The LAMB kernels against a float64 transcription of the formula: at most twice the error of plain torch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import pytest
import torch
from eco_fast_kernels import LambOptions, reference
from eco_fast_kernels.fused import lamb_step as fused
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("poisoned_memory")]

Place = Callable[[Tensor], Tensor]
GROUPS = ("parameters", "exp_avg", "exp_avg_sq", "average")
BETAS, EPSILON, NORM_CLAMP, AVERAGE_DECAY = (0.9, 0.99), 1e-6, 10.0, 0.999
OPTIONS = LambOptions(*BETAS, EPSILON, norm_clamp=NORM_CLAMP, average_decay=AVERAGE_DECAY)


def plan_of(lists: Sequence[list[Tensor]]) -> fused.LambPlan:
    parameters, gradients, exp_avg, exp_avg_sq, average = lists
    return fused.LambPlan(parameters, gradients, exp_avg, exp_avg_sq, average, OPTIONS)


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

    def __post_init__(self) -> None:
        self.parameters = [self.place(parameter.to(self.device)) for parameter in self.parameters]
        self.exp_avg = [self.place(torch.zeros_like(parameter)) for parameter in self.parameters]
        self.exp_avg_sq = [self.place(torch.zeros_like(parameter)) for parameter in self.parameters]
        self.average = [self.place(parameter) for parameter in self.parameters]

    def step(
        self,
        gradients: list[Tensor],
        *,
        average: bool = False,
        skip: bool = False,
        learning_rate: float = 0.01,
        inverse_scale: float = 1.0,
        **options: Any,
    ) -> None:
        """One step by the kernels, or by the reference of float32 on the CPU."""
        tensors = [self.place(gradient.to(self.device)) for gradient in gradients]
        scalars = [torch.tensor(value, device=self.device) for value in (learning_rate, skip, inverse_scale)]
        self.run(tensors, self.average if average else [], OPTIONS._replace(**options), *scalars)

    def run(self, gradients: list[Tensor], average: list[Tensor], options: LambOptions, *scalars: Tensor) -> None:
        lists = self.parameters, gradients, self.exp_avg, self.exp_avg_sq, average
        fused.LambPlan(*lists, options).step(*scalars)

    def all(self) -> list[Tensor]:
        return [*self.parameters, *self.exp_avg, *self.exp_avg_sq, *self.average]

    def bits(self) -> list[Tensor]:
        return [tensor.detach().cpu().clone().view(torch.int32) for tensor in self.all()]


class Plain(Weights):
    """The same by the reference, in float32."""

    def run(self, gradients: list[Tensor], average: list[Tensor], options: LambOptions, *scalars: Tensor) -> None:
        lists = self.parameters, gradients, self.exp_avg, self.exp_avg_sq, average
        reference.lamb_step(*lists, options, *scalars)


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
        if skip:
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
        for weights in (made, plain, exact):
            weights.step(gradients, skip=step == 4, **options)
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
def test_10_steps_of_many_tensors(device: str) -> None:
    run_and_check(device, many_parameters(64), 10, ALL_OPTIONS)


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
    weights.step(some_gradients(), average=True)
    return weights


def some_gradients() -> list[Tensor]:
    return [torch.randn(5), torch.randn(64), torch.randn(260), channels_last(2, 3, 2, 2)]


@pytest.mark.usefixtures("_small_blocks")
@pytest.mark.parametrize("bad", [1.0, float("nan"), float("inf")])
def test_a_skipped_step_leaves_every_bit(device: str, bad: float) -> None:
    weights, gradients = some_weights(device), some_gradients()
    before = weights.bits()
    for gradient in gradients:
        gradient.as_strided((gradient.numel(),), (1,))[::3] = bad
    weights.step(gradients, skip=True, **ALL_OPTIONS)
    assert all(torch.equal(after, bits) for after, bits in zip(weights.bits(), before, strict=True))
    # and without the skip, every tensor moves
    weights.step(some_gradients(), **ALL_OPTIONS)
    assert not any(torch.equal(after, bits) for after, bits in zip(weights.bits(), before, strict=True))


@pytest.mark.usefixtures("_small_blocks")
def test_large_gradients_are_clipped(device: str) -> None:
    weights = some_weights(device)
    weights.step([gradient.sign() * 3e38 for gradient in some_gradients()], clip_value=0.1)
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
    weights.run([gradient], [], options, rate, keep, scale)
    assert not keep
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


@pytest.mark.parametrize("column", range(6))
def test_one_address_that_is_not_aligned_is_enough(device: str, column: int) -> None:
    lists = [[torch.randn(8, device=device), torch.randn(8, device=device)] for _ in range(5)]
    if column < len(lists):
        lists[column][1] = displaced(lists[column][1])
    assert plan_of(lists)._constants["ALIGNED"] == (column == len(lists))


# --- one plan, many steps ---


@pytest.mark.usefixtures("_small_blocks")
def test_a_plan_reads_new_contents_of_the_same_memory(device: str) -> None:
    """Gradients in one buffer, each at a multiple of 16 bytes, filled anew for each step; scalars too."""
    parameters = many_parameters(64)
    weights, plain = Weights(parameters, device), Plain(parameters, "cpu")
    gradients = in_one_buffer(parameters, device)
    rate, skip, scale = (torch.tensor(value, device=device) for value in (0.0, False, 1.0))
    lists = weights.parameters, gradients, weights.exp_avg, weights.exp_avg_sq, weights.average
    plan = plan_of(lists)
    assert plan._constants["ALIGNED"]
    for step in range(4):
        given: dict[str, Any] = {"learning_rate": 0.01 * (step + 1), "skip": step == 2, "inverse_scale": 0.5**step}
        fresh = gradients_like(parameters)
        for tensor, value in zip((*gradients, rate, skip, scale), (*fresh, *given.values()), strict=True):
            tensor.copy_(value) if isinstance(value, Tensor) else tensor.fill_(value)
        plan.step(rate, skip, scale)
        plain.step(fresh, average=True, **given)
    for made, expected in zip(weights.all(), plain.all(), strict=True):
        torch.testing.assert_close(made.cpu(), expected, rtol=1e-5, atol=1e-6)


def in_one_buffer(tensors: list[Tensor], device: str) -> list[Tensor]:
    """Places for tensors laid out like these, one behind the other."""
    starts = [0, *accumulate(-(-tensor.numel() // 4) * 4 for tensor in tensors)]
    buffer = torch.zeros(starts.pop(), device=device)
    return [
        buffer.as_strided(tensor.shape, tensor.stride(), start) for tensor, start in zip(tensors, starts, strict=True)
    ]


def test_the_memory_of_a_plan_lives_as_long_as_the_plan(device: str) -> None:
    """Also where a tensor has been given other memory since, which the plan does not follow."""
    lists = [[torch.ones(5, device=device)] for _ in range(5)]
    storages = [StorageWeakRef(tensors[0].untyped_storage()) for tensors in lists]
    plan = plan_of(lists)
    parameter = lists[0][0]
    parameter.data = torch.ones(5, device=device)
    lists.clear()
    assert not any(storage.expired() for storage in storages)
    plan.step(*(torch.tensor(value, device=device) for value in (0.1, False, 1.0)))
    assert torch.equal(parameter, torch.ones(5, device=device))
    del plan
    assert all(storage.expired() for storage in storages)


# --- what is refused ---


def lists_of_three() -> list[list[Tensor]]:
    """Parameters, gradients, moments and average, one of them channels_last."""
    parameters = [torch.ones(3, 4), torch.ones(5), channels_last(2, 3, 3, 3)]
    return [[parameter.clone() for parameter in parameters] for _ in range(5)]


REFUSED: dict[str, tuple[int, Callable[[list[Tensor]], list[Tensor]], str]] = {
    "nothing": (0, lambda _: [], "expected at least one parameter, got none"),
    "gradients": (1, lambda of: of[:2], "expected 3 gradients, one per parameter, got 2"),
    "moments": (2, lambda of: [*of, of[0]], "expected 3 exp_avg, one per parameter, got 4"),
    "second moments": (3, lambda of: of[1:], "expected 3 exp_avg_sq, one per parameter, got 2"),
    "average": (4, lambda of: of[:1], "expected 3 average, one per parameter, got 1"),
    "dtype": (0, lambda of: [one.half() for one in of], "parameter 0 must be dense float32, got torch.float16"),
    "strides": (
        0,
        lambda of: [of[0], torch.zeros(10)[::2], of[2]],
        r"parameter 1 must be dense float32, got torch.float32, shape \(5,\), strides \(2,\)",
    ),
    "expanded": (0, lambda of: [of[0], torch.zeros(1).expand(5), of[2]], "parameter 1 must be dense"),
    "gradient dtype": (
        1,
        lambda of: [of[0].half(), *of[1:]],
        r"gradients 0 must be laid out like its .*got torch.float16",
    ),
    "gradient shape": (
        1,
        lambda of: [of[0], of[1][:4], of[2]],
        r"float32 \(5,\), strides \(1,\); got torch.float32 \(4,\)",
    ),
    "layout": (
        2,
        lambda of: [one.contiguous() for one in of],
        r"exp_avg 2 must be laid out like its parameter: .*strides \(27, 1, 9, 3\); got .* strides \(27, 9, 3, 1\)",
    ),
    "device": (1, lambda of: [of[0], of[1].to("meta"), of[2]], "gradients 1 is on meta, the rest on cpu"),
    "parameter device": (0, lambda of: [of[0], of[1].to("meta"), of[2]], "parameter 1 is on meta, the rest on cpu"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_tensors(case: str) -> None:
    index, change, message = REFUSED[case]
    lists = lists_of_three()
    plan_of(lists)
    lists[index] = change(lists[index])
    with pytest.raises(ValueError, match=message):
        plan_of(lists)


@pytest.mark.parametrize(
    ("index", "value", "message"),
    [
        (0, torch.ones(2), r"learning_rate must be a torch.float32 tensor of one value, got torch.float32 \(2,\)"),
        (0, torch.ones((), device="meta"), "learning_rate is on meta"),
        (1, torch.tensor(0), "skip must be a torch.bool tensor of one value, got torch.int64"),
        (2, torch.tensor(2), "inverse_scale must be a torch.float32 .*torch.int64"),
    ],
)
def test_refused_scalars(index: int, value: Tensor, message: str) -> None:
    scalars = [torch.tensor(0.1), torch.tensor(False), torch.tensor(1.0)]
    scalars[index] = value
    with pytest.raises(ValueError, match=message):
        plan_of(lists_of_three()).step(*scalars)


def test_strides_of_axes_of_size_1_do_not_matter(device: str) -> None:
    parameter = torch.zeros(6, 4, device=device).as_strided((6, 4, 1, 1), (4, 1, 4, 4))
    gradient = torch.randn(6, 4, 1, 1, device=device)
    assert gradient.stride() == (4, 1, 1, 1)
    weights = Weights([parameter], device, torch.Tensor.contiguous)
    weights.step([gradient])
    torch.testing.assert_close(weights.exp_avg[0], 0.1 * gradient)
