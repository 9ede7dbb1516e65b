"""The plain torch ops against float64, and the cases in which their arithmetic is exact."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from eco_fast_kernels.downsampling import STENCILS, Rounding, downsample, margin_of, symmetric_indices
from eco_fast_kernels.reference import LOSS_KINDS, LambOptions, LossKind, blended_loss, downsample_blend, lamb_step
from torch import Tensor

SCALAR_AND_PER_SAMPLE = pytest.mark.parametrize("alpha", [torch.tensor(0.3), torch.tensor([0.0, 0.25, 0.7, 1.0])])
EVERY_KIND = pytest.mark.parametrize("kind", LOSS_KINDS)


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def plain_loss(prediction: Tensor, hr: Tensor, sr: Tensor, alpha: Tensor, kind: LossKind, dtype: torch.dtype) -> Tensor:
    """The formula as it is in the paper, in a given precision, for targets without a margin."""
    weight = alpha.to(dtype).reshape(-1, 1, 1, 1)
    target = weight * hr.to(dtype) + (1 - weight) * sr.to(dtype)
    difference = 255 * prediction.to(dtype) - target.movedim(3, 1)
    if kind == "l1":
        terms = torch.abs(difference)
    elif kind == "l2":
        terms = difference * difference
    else:
        terms = torch.sqrt(difference * difference + 0.255 * 0.255)
    return terms.sum() / terms.numel()


def value_and_gradient(loss: Tensor, prediction: Tensor) -> tuple[float, Tensor]:
    (gradient,) = torch.autograd.grad(loss, prediction)
    return float(loss.detach()), gradient.double()


# --- blended_loss ---


@EVERY_KIND
@SCALAR_AND_PER_SAMPLE
@pytest.mark.parametrize("margin", [0, 3])
def test_loss_and_gradient_equal_float64(kind: LossKind, alpha: Tensor, margin: int) -> None:
    side = 12 + 2 * margin
    hr, sr = random_bytes(4, side, side + 2, 3), random_bytes(4, side, side + 2, 3)
    prediction = torch.rand(4, 3, 12, 14, requires_grad=True)
    inside = (slice(None), slice(margin, margin + 12), slice(margin, margin + 14))

    made = blended_loss(prediction, hr, sr, alpha, kind, margin=margin)
    assert made.dtype == torch.float32
    assert made.shape == ()
    value, gradient = value_and_gradient(made, prediction)
    exact_leaf = prediction.detach().double().requires_grad_()
    exact = plain_loss(exact_leaf, hr[inside], sr[inside], alpha, kind, torch.float64)
    exact_value, exact_gradient = value_and_gradient(exact, exact_leaf)
    plain = plain_loss(prediction, hr[inside], sr[inside], alpha, kind, torch.float32)
    _, plain_gradient = value_and_gradient(plain, prediction)

    assert value == pytest.approx(exact_value, rel=1e-6)
    assert (gradient - exact_gradient).abs().max() <= 2 * (plain_gradient - exact_gradient).abs().max()


@EVERY_KIND
def test_loss_by_hand(kind: LossKind) -> None:
    # The target is 100 + 0.25 * (200 - 100) = 125, the prediction 102 and 255 grey levels.
    hr, sr = torch.full((1, 1, 2, 1), 200, dtype=torch.uint8), torch.full((1, 1, 2, 1), 100, dtype=torch.uint8)
    prediction = torch.tensor([[[[0.4, 1.0]]]])
    expected = {"l1": (23 + 130) / 2, "l2": (23**2 + 130**2) / 2, "charbonnier": 76.500831}[kind]
    assert float(blended_loss(prediction, hr, sr, torch.tensor(0.25), kind)) == pytest.approx(expected, rel=1e-6)


@EVERY_KIND
@pytest.mark.parametrize("per_sample", [False, True])
def test_at_0_and_1_only_one_image_counts(kind: LossKind, per_sample: bool) -> None:
    hr, sr = random_bytes(2, 8, 8, 3), random_bytes(2, 8, 8, 3)
    prediction = torch.rand(2, 3, 8, 8, requires_grad=True)
    for weight, image in ((1.0, hr), (0.0, sr)):
        alpha = torch.full((2,), weight) if per_sample else torch.tensor(weight)
        absent = torch.tensor(0.5)  # an image beside itself: the weight is without effect
        alone = blended_loss(prediction, image, image, absent, kind)
        variants = [
            blended_loss(prediction, hr, sr, alpha, kind),
            blended_loss(prediction, hr if weight else None, None if weight else sr, alpha, kind),
        ]
        for variant in variants:
            assert torch.equal(variant, alone)
            (gradient,) = torch.autograd.grad(variant, prediction)
            (expected,) = torch.autograd.grad(alone, prediction, retain_graph=True)
            assert torch.equal(gradient, expected)
        exact = plain_loss(prediction.detach(), image, image, alpha, kind, torch.float64)
        assert float(alone.detach()) == pytest.approx(float(exact), rel=1e-6)


def test_a_perfect_prediction_has_no_loss_at_0_and_1() -> None:
    hr, sr = random_bytes(2, 8, 8, 3), random_bytes(2, 8, 8, 3)
    of_hr, of_sr = (image.float().movedim(3, 1) / 255 for image in (hr, sr))
    alpha = torch.tensor([1.0, 0.0])
    mixed = torch.stack([of_hr[0], of_sr[1]])
    assert float(blended_loss(mixed, hr, sr, alpha)) < 1e-5
    assert float(blended_loss(mixed.flip(0), hr, sr, alpha)) > 50


def test_loss_of_a_half_precision_prediction_is_float32() -> None:
    hr, sr = random_bytes(2, 8, 8, 3), random_bytes(2, 8, 8, 3)
    half = torch.rand(2, 3, 8, 8).bfloat16()
    alpha = torch.tensor(0.5)
    made = blended_loss(half, hr, sr, alpha)
    assert made.dtype == torch.float32
    assert torch.equal(made, blended_loss(half.float(), hr, sr, alpha))


def test_loss_refuses() -> None:
    images, prediction, alpha = random_bytes(2, 8, 8, 3), torch.rand(2, 3, 8, 8), torch.tensor(0.5)
    with pytest.raises(ValueError, match="one of l1, l2, charbonnier, got 'huber'"):
        blended_loss(prediction, images, images, alpha, "huber")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got neither"):
        blended_loss(prediction, None, None, alpha)
    with pytest.raises(ValueError, match=r"hr is .2, 8, 8, 3. but sr is .2, 8, 7, 3."):
        blended_loss(prediction, images, images[:, :, :7], alpha)
    with pytest.raises(ValueError, match=r"margin of 1 need crops of .2, 10, 10, 3., got .2, 8, 8, 3."):
        blended_loss(prediction, images, images, alpha, margin=1)


# --- downsample_blend ---


@SCALAR_AND_PER_SAMPLE
@pytest.mark.parametrize("rounding", ["uint8", "im2double"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_blend_equals_float64(alpha: Tensor, rounding: Rounding, dtype: torch.dtype) -> None:
    hr, sr = random_bytes(4, 30, 30, 3), random_bytes(4, 30, 30, 3)
    transposed = torch.tensor([True, False, False, True])
    made = downsample_blend(hr, sr, alpha, 3, rounding, transposed=transposed, dtype=dtype)
    assert made.shape == (4, 3, 6, 6)
    assert made.dtype == dtype
    assert made.is_contiguous(memory_format=torch.channels_last)

    of_hr, of_sr = (downsample(image, 3, rounding, transposed).double().movedim(3, 1) for image in (hr, sr))
    weight = alpha.double().reshape(-1, 1, 1, 1)
    expected = (weight * of_hr + (1 - weight) * of_sr) / 255
    error = (made.double() - expected).abs().max()
    # float32: three roundings of values up to 1; the others: one more of their own
    assert error <= 2 * torch.finfo(torch.float32).eps + (dtype != torch.float32) * torch.finfo(dtype).eps / 2


@pytest.mark.parametrize("scale", sorted(STENCILS))
@pytest.mark.parametrize("per_sample", [False, True])
def test_blend_at_0_and_1_is_one_image(scale: int, per_sample: bool) -> None:
    hr, sr = random_bytes(2, 7 * scale, 6 * scale, 3), random_bytes(2, 7 * scale, 6 * scale, 3)
    for weight, image in ((1.0, hr), (0.0, sr)):
        alpha = torch.full((2,), weight) if per_sample else torch.tensor(weight)
        expected = downsample(image, scale).float().movedim(3, 1) / 255
        assert torch.equal(downsample_blend(hr, sr, alpha, scale), expected)
        alone = downsample_blend(hr if weight else None, None if weight else sr, alpha, scale)
        assert torch.equal(alone, expected)
        assert alone.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_blend_is_rounded_once() -> None:
    hr, sr = random_bytes(2, 24, 24, 3), random_bytes(2, 24, 24, 3)
    alpha = torch.tensor([0.1, 0.6])
    half = downsample_blend(hr, sr, alpha, 2, dtype=torch.bfloat16)
    assert torch.equal(half, downsample_blend(hr, sr, alpha, 2).bfloat16())


def test_blend_refuses() -> None:
    images, alpha = random_bytes(2, 24, 24, 3), torch.tensor(0.5)
    with pytest.raises(ValueError, match="got neither"):
        downsample_blend(None, None, alpha, 2)
    with pytest.raises(ValueError, match="but sr is"):
        downsample_blend(images, images[:1], alpha, 2)
    with pytest.raises(ValueError, match="scale is one of"):
        downsample_blend(images, images, alpha, 6)
    with pytest.raises(ValueError, match="square"):
        downsample_blend(images[:, :22], None, alpha, 2, transposed=torch.tensor([True, False]))


# --- the border ---


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_symmetric_indices_equal_numpy_padding(size: int) -> None:
    expected = np.pad(np.arange(size), (20, 25), mode="symmetric")
    np.testing.assert_array_equal(symmetric_indices(-20, size + 25, size), expected)


def test_margin_covers_the_stencil() -> None:
    for scale, (half, _) in STENCILS.items():
        taps = 2 * len(half) - scale % 2
        reach = (taps - scale) / 2  # beyond each side of the `scale` pixels that an output pixel stands for
        assert reach <= margin_of(scale) == 2 * scale


# --- lamb_step ---

CPU_FALSE, CPU_TRUE = torch.tensor(False), torch.tensor(True)


@dataclass
class Weights:
    """Parameters with their moments."""

    parameters: list[Tensor]
    exp_avg: list[Tensor] = field(init=False)
    exp_avg_sq: list[Tensor] = field(init=False)

    def __post_init__(self) -> None:
        self.exp_avg = [torch.zeros_like(parameter) for parameter in self.parameters]
        self.exp_avg_sq = [torch.zeros_like(parameter) for parameter in self.parameters]

    def step(self, gradients: list[Tensor], rate: float, skip: Tensor = CPU_FALSE, **options: Any) -> None:
        lists = self.parameters, gradients, self.exp_avg, self.exp_avg_sq
        lamb_step(*lists, [], LambOptions(**options), torch.tensor(rate), skip, torch.ones(()))

    def bits(self) -> list[Tensor]:
        return [tensor.clone().view(torch.int32) for tensor in (*self.parameters, *self.exp_avg, *self.exp_avg_sq)]


def some_weights() -> Weights:
    """One tensor above and one below the norm clamp of 10, a fresh bias, and a single number."""
    weights = Weights([torch.randn(32, 3, 3, 3), torch.randn(16, 8) * 0.2, torch.zeros(8), torch.tensor([0.7])])
    norms = [float(parameter.norm()) for parameter in weights.parameters]
    assert norms[0] > 15
    assert 0 < norms[1] < 5
    return weights


def some_gradients(weights: Weights) -> list[Tensor]:
    return [torch.randn_like(parameter) * 0.1 + 0.03 for parameter in weights.parameters]


@pytest.mark.parametrize("weight_decay", [0.0, 0.01])
@pytest.mark.parametrize("clip_value", [None, 0.1])
def test_lamb_equals_float64_over_100_steps(weight_decay: float, clip_value: float | None) -> None:
    weights = some_weights()
    exact = [parameter.double().numpy() for parameter in weights.parameters]
    first = [np.zeros_like(parameter) for parameter in exact]
    second = [np.zeros_like(parameter) for parameter in exact]
    ratios_of_one = 0
    for step in range(100):
        rate = float(torch.tensor(0.01 * 0.98**step))
        gradients = some_gradients(weights)
        weights.step(gradients, rate, weight_decay=weight_decay, clip_value=clip_value)
        for index, gradient in enumerate(gradients):
            g = gradient.double().numpy()
            g = g if clip_value is None else np.clip(g, -clip_value, clip_value)
            first[index] = 0.9 * first[index] + (1 - 0.9) * g
            second[index] = 0.99 * second[index] + (1 - 0.99) * g**2
            update = first[index] / (np.sqrt(second[index]) + 1e-6) + weight_decay * exact[index]
            weight_norm = min(float(np.sqrt(np.sum(exact[index] ** 2))), 10.0)
            update_norm = float(np.sqrt(np.sum(update**2)))
            ratio = weight_norm / update_norm if weight_norm > 0 and update_norm > 0 else 1.0
            ratios_of_one += ratio == 1.0
            exact[index] = exact[index] - rate * ratio * update
    assert ratios_of_one == 1  # the fresh bias, at the first step
    for parameter, expected in zip(weights.parameters, exact, strict=True):
        error = np.linalg.norm(parameter.double().numpy() - expected) / np.linalg.norm(expected)
        assert error <= 1e-6
    for made, wanted in ((weights.exp_avg, first), (weights.exp_avg_sq, second)):
        for moment, expected in zip(made, wanted, strict=True):
            assert np.linalg.norm(moment.double().numpy() - expected) <= 1e-6 * np.linalg.norm(expected)


def test_lamb_by_hand(lamb_case: Any) -> None:
    weights = Weights([torch.tensor(lamb_case.start)])
    options: dict[str, Any] = {"beta1": 0.0, "beta2": 0.0, "epsilon": 1e-12, "clip_value": lamb_case.clip_value}
    weights.step([torch.tensor(lamb_case.gradient)], 0.1, **options)
    assert weights.parameters[0].tolist() == pytest.approx(lamb_case.expected, rel=1e-6)
    assert weights.exp_avg[0].tolist() == pytest.approx(lamb_case.clipped, rel=1e-6)
    assert weights.exp_avg_sq[0].tolist() == pytest.approx([value**2 for value in lamb_case.clipped], rel=1e-6)


def test_lamb_options_are_used() -> None:
    results = []
    changes: list[dict[str, Any]] = [{}, {"epsilon": 0.1}, {"norm_clamp": 20.0}, {"weight_decay": 0.5}]
    for options in (*changes, {"beta1": 0.8}, {"beta2": 0.999}):
        torch.manual_seed(0)
        weights = some_weights()
        for _ in range(2):
            weights.step(some_gradients(weights), 0.01, **options)
        results.append(weights.parameters[0])
    for index, result in enumerate(results):
        assert not any(torch.equal(result, other) for other in results[:index])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e30])
@pytest.mark.parametrize("clip_value", [None, 0.1])
@pytest.mark.parametrize("earlier_steps", [0, 3])
def test_a_skipped_lamb_step_changes_no_bit(bad: float, clip_value: float | None, earlier_steps: int) -> None:
    weights = some_weights()
    for _ in range(earlier_steps):
        weights.step(some_gradients(weights), 0.01)
    before = weights.bits()
    gradients = some_gradients(weights)
    gradients[0][0, 0, 0, 0] = bad
    gradients[3].fill_(bad)
    weights.step(gradients, 0.01, CPU_TRUE, clip_value=clip_value, weight_decay=0.01)
    for after, expected in zip(weights.bits(), before, strict=True):
        assert torch.equal(after, expected)
    # and the same call without the skip does change every tensor
    weights.step(some_gradients(weights), 0.01, CPU_FALSE, clip_value=clip_value, weight_decay=0.01)
    for after, expected in zip(weights.bits(), before, strict=True):
        assert not torch.equal(after, expected)


@pytest.mark.parametrize("skip", [CPU_FALSE, CPU_TRUE])
def test_lamb_leaves_gradients_and_rate_alone(skip: Tensor) -> None:
    weights = some_weights()
    gradients = some_gradients(weights)
    gradients[1].mul_(100)
    before = [gradient.clone() for gradient in gradients]
    learning_rate = torch.tensor(0.01)
    lists = weights.parameters, gradients, weights.exp_avg, weights.exp_avg_sq
    lamb_step(*lists, [], LambOptions(clip_value=0.1), learning_rate, skip, torch.tensor(0.5))
    for gradient, expected in zip(gradients, before, strict=True):
        assert torch.equal(gradient, expected)
    assert torch.equal(learning_rate, torch.tensor(0.01))


def test_lamb_treats_each_tensor_alone() -> None:
    together, alone = some_weights(), []
    gradients = some_gradients(together)
    for parameter, gradient in zip(together.parameters, gradients, strict=True):
        single = Weights([parameter.clone()])
        single.step([gradient], 0.01)
        alone.append(single.parameters[0])
    together.step(gradients, 0.01)
    for parameter, expected in zip(together.parameters, alone, strict=True):
        assert torch.equal(parameter, expected)
