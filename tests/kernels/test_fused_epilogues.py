"""The kernels behind convolutions against their formulas in float64: at most twice the error of plain torch."""

import itertools

import pytest
import torch
from eco_fast_kernels import column_sums, epilogues
from eco_fast_kernels.fused import epilogues as fused
from torch import Tensor

from tests.kernels.network_cases import (
    EVERY_DTYPE,
    EVERY_SIZE,
    FLOATS,
    SIZE,
    SIZES,
    assert_exact_enough,
    assert_partial_sums,
    random_images,
)

pytestmark = pytest.mark.usefixtures("poisoned_memory")

OPS = torch.ops.eco_fast
PAIRS = [(one, one) for one in FLOATS] + [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)]


# --- bias_relu ---


@EVERY_SIZE
@EVERY_DTYPE
def test_bias_relu(device: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random_images(size, dtype)
    for bias in (torch.randn(size[1]), torch.randn(size[1]).to(dtype)):
        made = OPS.bias_relu(x.to(device), bias.to(device))
        true = epilogues.bias_relu(x.double(), bias.double())
        assert_exact_enough(made, epilogues.bias_relu(x, bias), true, device)


@EVERY_DTYPE
def test_relu_of_what_is_not_finite(device: str, dtype: torch.dtype) -> None:
    x = random_images((1, 4, 2, 2), dtype)
    x[0, 0, 0, 0], x[0, 1, 1, 0], x[0, 2, 0, 1] = float("nan"), float("inf"), -float("inf")
    made = OPS.bias_relu(x.to(device), torch.zeros(4, device=device)).cpu()
    assert torch.equal(made.isnan(), x.isnan())
    assert torch.equal(made[~made.isnan()], x.relu()[~x.isnan()])


# --- add_residual ---


@EVERY_SIZE
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_add_residual(device: str, size: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    residual, x = (random_images(size, dtype) for dtype in dtypes)
    bias = torch.randn(size[1])
    some = torch.tensor([1.25, 0.0])[: size[0]]
    every = list(itertools.product((1.0, 0.1), (None, some)))
    for factor, factors in every if size == SIZES[0] else every[-1:]:
        made = OPS.add_residual(
            residual.to(device), x.to(device), bias.to(device), factor, None if factors is None else factors.to(device)
        )
        plain = epilogues.add_residual(residual, x, bias, factor, factors)
        true = epilogues.add_residual(residual.double(), x.double(), bias.double(), factor, factors)
        assert_exact_enough(made, plain, true, device)


def test_a_dropped_branch_leaves_the_residual(device: str) -> None:
    residual, x = random_images(SIZE), random_images(SIZE)
    factors = torch.tensor([0.0, 1.0], device=device)
    made = OPS.add_residual(residual.to(device), x.to(device), torch.ones(SIZE[1], device=device), 1.0, factors).cpu()
    assert torch.equal(made[0], residual[0])
    assert not torch.equal(made[1], residual[1])


# --- relu_gradient ---


@EVERY_SIZE
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_relu_gradient_is_exact(device: str, size: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    upstream, activation = random_images(size, dtypes[0]), random_images(size, dtypes[1]).relu()
    sums = column_sums(upstream, 3).to(device)
    made = OPS.relu_gradient(upstream.to(device), activation.to(device), sums, 1)
    expected = torch.where(activation > 0, upstream, 0)
    assert (made.dtype, made.is_contiguous(memory_format=torch.channels_last)) == (upstream.dtype, True)
    assert torch.equal(made.cpu(), expected)
    assert_partial_sums(sums, 1, expected)


def test_gradient_at_zero_and_at_nan(device: str) -> None:
    """That of torch's ReLU: none at zero; at NaN all of it, so that it shows."""
    activation = torch.tensor([0.0, -0.0, 2.0**-126, float("nan")]).view(1, 4, 1, 1)
    sums = torch.empty(1, 1, 4, device=device)
    made = OPS.relu_gradient(torch.full_like(activation, 3.0).to(device), activation.to(device), sums, 0)
    assert made.flatten().tolist() == [0, 0, 3, 3]
    assert sums.flatten().tolist() == [0, 0, 3, 3]


# --- merge_gradients ---


@EVERY_SIZE
@EVERY_DTYPE
@pytest.mark.parametrize("has_second", [True, False])
def test_merge_gradients(device: str, size: tuple[int, ...], dtype: torch.dtype, has_second: bool) -> None:
    first, second = random_images(size, dtype), random_images(size, dtype) if has_second else None
    some = torch.tensor([1.25, 0.0])[: size[0]]
    every = list(itertools.product((1.0, 0.1), (None, some), (dtype, torch.bfloat16)))
    for factor, factors, of_branch in every if size == SIZES[0] else (every[0], every[-1]):
        sums, elsewhere = column_sums(first, 3).to(device), column_sums(first, 3)
        total, branch = OPS.merge_gradients(
            first.to(device), None if second is None else second.to(device), factor,
            None if factors is None else factors.to(device), of_branch, sums, 2,
        )  # fmt: skip
        plain = epilogues.merge_gradients(first, second, factor, factors, of_branch, elsewhere, 2)
        true_total = first.double() + (0 if second is None else second.double())
        true_branch = factor * true_total * (1 if factors is None else factors.view(-1, 1, 1, 1).double())
        roundings = 1 if second is None else 2
        for made, other, true in ((total, plain[0], true_total), (branch, plain[1], true_branch)):
            assert (made.numel(), made.dtype) == (other.numel(), other.dtype)
            if made.numel():
                assert_exact_enough(made, other, true, device, roundings)
        assert (total.numel() > 0) == has_second
        assert (branch.numel() == 0) == (factor == 1 and factors is None and of_branch == dtype)
        assert_partial_sums(sums, 2, branch if branch.numel() else total if total.numel() else first)


# --- all of them ---


def everything(device: str, size: tuple[int, ...], sums: Tensor, images: list[Tensor], bias: Tensor) -> list[Tensor]:
    """The results of all ops; sums have three places."""
    x, y, z = (image.to(device) for image in images)
    factors = torch.rand(size[0]).to(device)
    bias = bias.to(device)
    made = [OPS.bias_relu(x, bias), OPS.add_residual(y, x, bias, 0.1, factors), OPS.relu_gradient(z, x, sums, 0)]
    made += OPS.merge_gradients(y, z, 0.1, None, torch.float32, sums, 1)
    made += OPS.merge_gradients(y, None, 1.0, factors, torch.float32, sums, 2)[1:]
    return [*made, sums]


def test_same_input_same_bits(device: str) -> None:
    images, bias = [random_images(SIZE) for _ in range(3)], torch.randn(SIZE[1])
    results = []
    for _ in range(2):
        torch.manual_seed(1)
        results.append(everything(device, SIZE, column_sums(images[0], 3).to(device), images, bias))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_nothing_is_written_elsewhere(device: str, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    images, bias = [random_images(size) for _ in range(3)], torch.randn(size[1])
    shape, pads = column_sums(images[0], 3).shape, []

    def inside(size: torch.Size, stride: tuple[int, ...], count: int) -> Tensor:
        pads.append(torch.full((count + 8192,), 77.5, device=device))
        return pads[-1].as_strided(size, stride, 4096)

    sums = inside(shape, (shape[1] * shape[2], shape[2], 1), shape.numel())
    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", lambda like, **_: inside(like.shape, like.stride(), like.numel()))
        everything(device, size, sums, images, bias)
    assert len(pads) == 7
    for pad in pads:
        assert (pad[:4096] == 77.5).all()
        assert (pad[-4096:] == 77.5).all()
        assert (pad[4096:-4096] != 77.5).all()


@pytest.mark.parametrize("layout", ["contiguous", "slice", "expanded"])
def test_any_layout_gives_the_same_bits(device: str, layout: str) -> None:
    images, bias = [random_images(SIZE) for _ in range(3)], torch.randn(SIZE[1])
    if layout == "expanded":
        images = [image[:1].expand(SIZE) for image in images]
    results = []
    for lay in (lambda image: image.contiguous(memory_format=torch.channels_last), laid_out[layout]):
        torch.manual_seed(1)
        others = [lay(image) for image in images]
        results.append(everything(device, SIZE, column_sums(images[0], 3).to(device), others, bias))
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


laid_out = {
    "contiguous": Tensor.contiguous,
    "slice": lambda image: torch.cat([image, image], dim=1)[:, : image.shape[1]],
    "expanded": lambda image: image,
}


@pytest.mark.parametrize("channels", [64, 256, 180])
def test_a_tile_has_whole_rows_and_few_values(channels: int) -> None:
    constants = fused.constants(torch.empty(1, channels, 4, 4, device="meta"))
    assert constants["COLUMNS"] >= channels
    assert constants["PART"] % constants["ROWS"] == 0
    assert constants["ROWS"] * constants["COLUMNS"] == fused.BLOCK_VALUES


def test_more_channels_than_a_tile_has_values(device: str) -> None:
    size = (1, fused.BLOCK_VALUES + 5, 2, 2)
    x, bias = random_images(size), torch.randn(size[1])
    made = OPS.bias_relu(x.to(device), bias.to(device))
    assert torch.equal(made.cpu(), (x + bias.view(-1, 1, 1)).relu())
