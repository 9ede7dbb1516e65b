"""The loss kernel and its gradient against float64: at most twice the error of plain torch."""

import pytest
import torch
from eco_fast_kernels import empty_crops, move_crops, reference
from eco_fast_kernels.fused import blended_loss as fused
from eco_fast_kernels.reference import CHARBONNIER_EPSILON, LOSS_KINDS, LossKind
from torch import Tensor

pytestmark = pytest.mark.usefixtures("poisoned_memory")

EVERY_KIND = pytest.mark.parametrize("kind", LOSS_KINDS)
EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
ALPHAS = pytest.mark.parametrize(
    "alpha", [torch.tensor(0.3), torch.tensor([0.3, 0.0, 1.0])], ids=["scalar", "per sample"]
)
ONE = torch.tensor(1.0)


def random_images(samples: int, height: int, width: int, margin: int = 0) -> Tensor:
    return torch.randint(0, 256, (samples, height + 2 * margin, width + 2 * margin, 3), dtype=torch.uint8)


def random_prediction(samples: int, height: int, width: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(samples, 3, height, width).to(dtype, memory_format=torch.channels_last)


def launch(
    prediction: Tensor,
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    kind: LossKind = "l1",
    margin: int = 0,
    gradient_scale: Tensor = ONE,
    *,
    device: str,
) -> tuple[Tensor, Tensor, bool]:
    """The kernels on the device; images stay as they lie."""
    hr, sr = (None if image is None else move_crops(image, device) for image in (hr, sr))
    loss, gradient, finite = fused.launch(
        prediction.to(device), hr, sr, alpha.to(device), kind, margin, gradient_scale.to(device)
    )
    assert (loss.dtype, loss.shape, finite.dtype, finite.shape) == (torch.float32, (), torch.bool, ())
    assert (gradient.dtype, gradient.shape) == (prediction.dtype, prediction.shape)
    assert gradient.is_contiguous(memory_format=torch.channels_last)
    return loss.cpu(), gradient.cpu(), bool(finite)


def exact(
    prediction: Tensor, hr: Tensor | None, sr: Tensor | None, alpha: Tensor, kind: LossKind, margin: int, scale: float
) -> tuple[Tensor, Tensor]:
    """The loss and its gradient in float64, by autograd from the formula."""
    leaf = prediction.double().requires_grad_()
    first, second = (image if image is not None else other for image, other in ((hr, sr), (sr, hr)))
    assert first is not None
    assert second is not None
    rows, columns = (slice(margin, size - margin) for size in first.shape[1:3])
    real, centroid = (image[:, rows, columns].double().movedim(3, 1) for image in (first, second))
    weight = alpha.double().reshape(-1, 1, 1, 1)
    difference = 255 * leaf - (weight * real + (1 - weight) * centroid)
    if kind == "l1":
        loss = difference.abs().mean()
    elif kind == "l2":
        loss = difference.square().mean()
    else:
        loss = (difference.square() + CHARBONNIER_EPSILON**2).sqrt().mean()
    (gradient,) = torch.autograd.grad(loss * scale, leaf)
    return loss.detach(), gradient


def one_ulp(values: Tensor, dtype: torch.dtype, device: str) -> Tensor:
    """What Triton's interpreter, which cuts bfloat16 off instead of rounding it, may differ by; else nothing."""
    truncates = device == "cpu" and dtype == torch.bfloat16
    return torch.finfo(dtype).eps * values.abs().log2().floor().exp2() if truncates else torch.zeros_like(values)


def assert_same_loss(loss: Tensor, other: Tensor, device: str) -> None:
    """Equal; on a GPU the compiler may add up differently where it reads differently."""
    torch.testing.assert_close(loss, other, rtol=0 if device == "cpu" else 2**-22, atol=0)


def check(
    prediction: Tensor,
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    kind: LossKind = "l1",
    margin: int = 0,
    scale: float = 1.0,
    *,
    device: str,
) -> None:
    """Loss and gradient are finite and, element by element, at most twice as far from float64 as plain torch is."""
    of_scale = torch.tensor(scale)
    loss, gradient, finite = launch(prediction, hr, sr, alpha, kind, margin, of_scale, device=device)
    true_loss, true_gradient = exact(prediction, hr, sr, alpha, kind, margin, scale)
    plain_loss, plain_gradient = reference.blended_loss_and_gradient(prediction, hr, sr, alpha, kind, margin, of_scale)
    assert finite
    # One number may come out exact by chance: no error is counted as less than float32's half unit in the last place.
    half_unit = torch.finfo(torch.float32).eps * float(true_loss) / 2
    assert abs(float(loss) - float(true_loss)) <= 2 * max(abs(float(plain_loss) - float(true_loss)), half_unit)
    allowed = 2 * (plain_gradient.double() - true_gradient).abs().max() + one_ulp(
        true_gradient, prediction.dtype, device
    )
    assert ((gradient.double() - true_gradient).abs() <= allowed).all()


@EVERY_KIND
@EVERY_DTYPE
@ALPHAS
@pytest.mark.parametrize("margin", [0, 4])
def test_loss_and_gradient(device: str, kind: LossKind, dtype: torch.dtype, alpha: Tensor, margin: int) -> None:
    hr, sr = random_images(3, 5, 7, margin), random_images(3, 5, 7, margin)
    check(random_prediction(3, 5, 7, dtype), hr, sr, alpha, kind, margin, device=device)


@EVERY_KIND
@EVERY_DTYPE
@pytest.mark.parametrize("absent", ["hr", "sr"])
def test_one_image_alone(device: str, kind: LossKind, dtype: torch.dtype, absent: str) -> None:
    image, prediction = random_images(2, 3, 5, 6), random_prediction(2, 3, 5, dtype)
    pair = (None, image) if absent == "hr" else (image, None)
    check(prediction, pair[0], pair[1], torch.tensor(0.0 if absent == "hr" else 1.0), kind, 6, device=device)


@pytest.mark.parametrize(
    "size",
    [(1, 1, 1), (1, 2, 21), (1, 2, 22), (1, 2, 43), (1, 32, 1), (1, 33, 2), (3, 11, 3), (2, 32, 22), (5, 13, 23)],
    ids=str,
)
@pytest.mark.parametrize("margin", [0, 4])
def test_sizes_around_those_of_a_tile(device: str, size: tuple[int, int, int], margin: int) -> None:
    hr, sr = random_images(*size, margin), random_images(*size, margin)
    alpha = torch.linspace(0, 1, size[0])
    for kind in LOSS_KINDS:
        check(random_prediction(*size), hr, sr, alpha, kind, margin, device=device)


@pytest.mark.parametrize("channels", [1, 4])
def test_other_numbers_of_channels(device: str, channels: int) -> None:
    hr, sr = (torch.randint(0, 256, (2, 8, 9, channels), dtype=torch.uint8) for _ in range(2))
    prediction = torch.rand(2, channels, 4, 5).contiguous(memory_format=torch.channels_last)
    check(prediction, hr, sr, torch.tensor(0.3), margin=2, device=device)


def test_more_programs_than_one_block_of_the_sum(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "BLOCK_SUM", 2)
    monkeypatch.setattr(fused, "TILE_ROWS", 2)
    hr, sr = random_images(1, 9, 2), random_images(1, 9, 2)
    check(random_prediction(1, 9, 2), hr, sr, torch.tensor(0.3), device=device)


def test_images_that_weigh_nothing_are_without_effect(device: str) -> None:
    hr, sr, prediction = random_images(2, 3, 4), random_images(2, 3, 4), random_prediction(2, 3, 4)
    alpha = torch.tensor([1.0, 0.0])
    both = torch.stack([hr[0], sr[1]])
    for kind in LOSS_KINDS:
        blended = launch(prediction, hr, sr, alpha, kind, device=device)
        alone = launch(prediction, both, None, alpha, kind, device=device)
        assert_same_loss(blended[0], alone[0], device)
        assert torch.equal(blended[1], alone[1])


@EVERY_DTYPE
def test_no_difference_has_no_gradient(device: str, dtype: torch.dtype) -> None:
    # The blends are 0, 127.5 and 255, all of which 255 * prediction reaches without a rounding.
    hr = torch.tensor([0, 255, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    sr = torch.tensor([0, 0, 255], dtype=torch.uint8).reshape(1, 1, 1, 3)
    prediction = torch.tensor([0.0, 0.5, 1.0], dtype=dtype).reshape(1, 3, 1, 1)
    for kind, least in (("l1", 0.0), ("l2", 0.0), ("charbonnier", CHARBONNIER_EPSILON)):
        loss, gradient, finite = launch(prediction, hr, sr, torch.tensor(0.5), kind, device=device)  # type: ignore[arg-type]
        assert float(loss) == pytest.approx(least, rel=1e-6)
        assert gradient.flatten().tolist() == [0.0, 0.0, 0.0]
        assert finite


def test_l1_gradient_is_the_sign(device: str) -> None:
    image = torch.full((1, 1, 1, 3), 128, dtype=torch.uint8)
    prediction = torch.tensor([0.25, 0.75, 1.0]).reshape(1, 3, 1, 1)
    loss, gradient, _ = launch(prediction, image, None, ONE, device=device)
    assert gradient.flatten().tolist() == [-85.0, 85.0, 85.0]
    assert torch.equal(loss, torch.tensor((64.25 + 63.25 + 127) / 3))


@pytest.mark.filterwarnings("ignore:invalid value encountered in divide:RuntimeWarning")  # numpy's, of inf / inf
@EVERY_KIND
@EVERY_DTYPE
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_prediction_that_is_not_finite_shows(device: str, kind: LossKind, dtype: torch.dtype, bad: float) -> None:
    hr, sr, prediction = random_images(2, 3, 4), random_images(2, 3, 4), random_prediction(2, 3, 4, dtype)
    fine = launch(prediction, hr, sr, ONE, kind, device=device)[1]
    prediction[1, 2, 2, 3] = bad
    loss, gradient, finite = launch(prediction, hr, sr, ONE, kind, device=device)
    assert not loss.isfinite()
    assert not finite
    if bad in (float("inf"), -float("inf")):
        _, expected = reference.blended_loss_and_gradient(prediction, hr, sr, ONE, kind, 0, ONE)
        torch.testing.assert_close(
            gradient[1, 2, 2, 3], expected[1, 2, 2, 3], rtol=torch.finfo(dtype).eps, atol=0, equal_nan=True
        )
    else:
        assert gradient[1, 2, 2, 3].isnan()
    gradient[1, 2, 2, 3] = fine[1, 2, 2, 3]
    assert torch.equal(gradient, fine)


@EVERY_KIND
@EVERY_DTYPE
def test_gradient_scale(device: str, kind: LossKind, dtype: torch.dtype) -> None:
    hr, sr = random_images(2, 4, 5), random_images(2, 4, 5)
    # At most 255 / 120 * slope * 16, the largest of which (l2, 510) is within float16.
    check(random_prediction(2, 4, 5, dtype), hr, sr, torch.tensor(0.3), kind, scale=16.0, device=device)


def test_gradient_scale_keeps_small_gradients_of_16_bits(device: str) -> None:
    # Off by float16's least number, the gradient is 2 * d * 255 / numel = 2e-8, less than half of that number.
    image = torch.zeros((1, 32, 4096, 3), dtype=torch.uint8)
    prediction = torch.full((1, 3, 32, 4096), 2**-24).to(torch.float16, memory_format=torch.channels_last)
    of_one = launch(prediction, image, None, ONE, "l2", device=device)[1]
    scaled = launch(prediction, image, None, ONE, "l2", gradient_scale=torch.tensor(65536.0), device=device)[1]
    _, true = exact(prediction, image, None, ONE, "l2", 0, 65536.0)
    assert (of_one == 0).all()
    assert (scaled.double() / true - 1).abs().max() <= torch.finfo(torch.float16).eps


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 2, 22), (3, 11, 3), (1, 33, 2)], ids=str)
def test_nothing_is_written_beyond_the_gradient(
    device: str, size: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, prediction = random_images(*size), random_prediction(*size).to(device)
    memory = torch.full((prediction.numel() + 8192,), 77.5, device=device)
    place = memory[4096:-4096].as_strided(prediction.shape, prediction.stride(), 4096)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda _: place)
        launch(prediction, images, None, ONE, device=device)
    assert (memory[:4096] == 77.5).all()
    assert (memory[-4096:] == 77.5).all()
    assert (place != 77.5).all()


@EVERY_KIND
def test_same_input_same_bits(device: str, kind: LossKind) -> None:
    hr, sr, prediction = random_images(3, 23, 5), random_images(3, 23, 5), random_prediction(3, 23, 5)
    first, second = (launch(prediction, hr, sr, torch.tensor(0.3), kind, device=device) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


# --- how images may lie ---


def laid_out(images: Tensor, layout: str, margin: int) -> Tensor:
    """The same pixels, elsewhere."""
    if layout == "padded":  # as the loader makes them
        place = empty_crops(images.shape[0], images.shape[1], margin)
    elif layout == "slice":  # of a larger batch, whose size is no multiple of 16 bytes
        place = torch.empty((images.shape[0] + 2, *images.shape[1:]), dtype=torch.uint8)[1:-1]
    else:
        place = torch.empty_like(images)
    return place.copy_(images)


@pytest.mark.parametrize("margin", [0, 4, 6])
@pytest.mark.parametrize("of_hr", ["padded", "contiguous", "slice"])
@pytest.mark.parametrize("of_sr", ["padded", "contiguous", "slice"])
def test_layouts_give_the_same_bits(device: str, margin: int, of_hr: str, of_sr: str) -> None:
    hr, sr, prediction = random_images(3, 5, 5, margin), random_images(3, 5, 5, margin), random_prediction(3, 5, 5)
    alpha = torch.tensor([0.3, 0.0, 1.0])
    expected = launch(prediction, hr, sr, alpha, "l2", margin, device=device)
    pair = laid_out(hr, of_hr, margin), laid_out(sr, of_sr, margin)
    made = launch(prediction, *pair, alpha, "l2", margin, device=device)
    assert_same_loss(made[0], expected[0], device)
    assert torch.equal(made[1], expected[1])


def test_weights_may_be_a_view(device: str) -> None:
    hr, sr, prediction = random_images(3, 2, 2), random_images(3, 2, 2), random_prediction(3, 2, 2)
    weights = torch.rand(3, 2)
    check(prediction, hr, sr, weights[:, 1], device=device)
    check(prediction, hr, sr, weights[:1, 0].expand(3), device=device)
