"""The kernels of bias and GELU against float64: at most twice the error of plain torch."""

import math

import pytest
import torch
from eco_fast_kernels.fused import bias_gelu as fused
from torch import Tensor
from torch.nn import functional

from tests.kernels.tolerances import allowed, levels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
ROOT = math.sqrt(0.5)


def kernels(x: Tensor, bias: Tensor, upstream: Tensor, device: str) -> list[Tensor]:
    """y and the gradients of x and the bias."""
    leaves = [one.detach().to(device).requires_grad_() for one in (x, bias)]
    y = fused.bias_gelu_op(*leaves)
    return [one.detach().cpu() for one in (y, *torch.autograd.grad(y, leaves, upstream.to(device)))]


def exact(x: Tensor, bias: Tensor, upstream: Tensor) -> list[Tensor]:
    """In float64, by autograd from the formula; erfc, for the lower tail of 1 + erf is lost in any precision."""
    leaves = [one.detach().double().requires_grad_() for one in (x, bias)]
    z = leaves[0] + leaves[1]
    y = z * torch.special.erfc(-z * ROOT) / 2
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream.double())]


def plain(x: Tensor, bias: Tensor, upstream: Tensor) -> list[Tensor]:
    """In plain torch, in the dtype of x."""
    leaves = [one.detach().clone().requires_grad_() for one in (x, bias)]
    y = functional.gelu(leaves[0] + leaves[1].to(x.dtype))
    return [y.detach(), *torch.autograd.grad(y, leaves, upstream)]


def check(x: Tensor, bias: Tensor, device: str) -> list[Tensor]:
    """Results and gradients have their dtypes and shapes, and are at most twice as far from float64 as plain torch."""
    upstream = torch.randn(x.shape).to(x.dtype)
    made = kernels(x, bias, upstream, device)
    for one, truth, theirs in zip(made, exact(x, bias, upstream), plain(x, bias, upstream), strict=True):
        assert (one.dtype, one.shape) == (theirs.dtype, theirs.shape)
        operations = 2 if one.shape == x.shape else 2 + levels(x.numel() // len(bias))
        assert ((one.double() - truth).abs() <= allowed(theirs, truth, operations, device)).all()
    return made


@EVERY_DTYPE
@pytest.mark.parametrize("channels", [5, 60, 120])
def test_results_and_gradients(device: str, dtype: torch.dtype, channels: int) -> None:
    check(2 * torch.randn(2, 1, 7, channels).to(dtype), torch.randn(channels), device)


@EVERY_DTYPE
def test_a_bias_of_16_bits(device: str, dtype: torch.dtype) -> None:
    check(torch.randn(3, 7, 60).to(dtype), torch.randn(60).to(dtype), device)


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 1), (7, 127), (5, 128), (3, 129), (2, 360), (1, 1025)], ids=str)
def test_other_shapes(device: str, shape: tuple[int, ...]) -> None:
    check(torch.randn(shape), torch.randn(shape[-1]), device)


@pytest.mark.parametrize("rows", [15, 16, 17, 128, 129])
def test_rows_around_those_of_a_tile_and_of_a_part(device: str, rows: int) -> None:
    check(torch.randn(rows, 120), torch.randn(120), device)


@pytest.mark.filterwarnings("ignore:overflow encountered in multiply:RuntimeWarning")  # numpy's
def test_the_whole_range(device: str) -> None:
    """Where plain torch keeps its digits, so do the kernels; beyond the fitted range GELU goes to 0 and to z."""
    z = torch.linspace(-12, 12, 4001)[:, None]
    made, gradient, _ = (one.double() for one in kernels(z, torch.zeros(1), torch.ones_like(z), device))
    true, slope, _ = exact(z, torch.zeros(1), torch.ones_like(z))
    assert ((made - true).abs() <= 1.2e-7 + 1.2e-7 * true.abs()).all()
    assert ((gradient - slope).abs() <= 3e-7).all()
    lower = (z >= -5.5) & (z < 0)
    assert ((made - true).abs() <= 2e-3 * true.abs())[lower].all()
    edge = torch.tensor([[-3e38], [-1e9], [-65504.0], [0.0], [65504.0], [1e9], [3e38]])
    made, gradient, _ = kernels(edge, torch.zeros(1), torch.ones_like(edge), device)
    assert torch.equal(made, edge.relu())
    assert torch.equal(gradient, torch.tensor([0, 0, 0, 0.5, 1, 1, 1])[:, None])


@EVERY_DTYPE
def test_a_value_that_is_not_finite_stays_alone(device: str, dtype: torch.dtype) -> None:
    x, bias, upstream = torch.randn(5, 7, 60).to(dtype), torch.randn(60), torch.randn(5, 7, 60).to(dtype)
    fine = kernels(x, bias, upstream, device)
    x[2, 3, 4] = float("nan")
    made = kernels(x, bias, upstream, device)
    for one, before in zip(made, fine, strict=True):
        place = (2, 3, 4) if one.shape == x.shape else (4,)
        assert one[place].isnan()
        one[place] = before[place]
        assert torch.equal(one, before)


@EVERY_DTYPE
def test_same_input_same_bits(device: str, dtype: torch.dtype) -> None:
    x, bias, upstream = torch.randn(2, 33, 120).to(dtype), torch.randn(120), torch.randn(2, 33, 120).to(dtype)
    first, second = (kernels(x, bias, upstream, device) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_upstream_gradients_may_lie_anyhow(device: str) -> None:
    x, bias, upstream = torch.randn(2, 5, 60), torch.randn(60), torch.randn(2, 60, 5).transpose(1, 2)
    expected = kernels(x, bias, upstream.contiguous(), device)
    assert all(map(torch.equal, kernels(x, bias, upstream, device), expected))


@pytest.mark.parametrize("shape", [(1, 5), (17, 60), (3, 130)], ids=str)
def test_nothing_is_written_beyond_the_results(
    device: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    x, bias = torch.randn(shape, device=device), torch.randn(shape[-1], device=device)
    memories, places = [], []

    def guarded(like: Tensor) -> Tensor:
        memories.append(torch.full((like.numel() + 8192,), 77.5, device=device))
        places.append(memories[-1][4096:-4096].view(like.shape))
        return places[-1]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", guarded)
        fused.launch(x, bias)
        fused.launch_gradient(x, x, bias)
    assert len(memories) == 2
    for memory, place in zip(memories, places, strict=True):
        assert (memory[:4096] == 77.5).all()
        assert (memory[-4096:] == 77.5).all()
        assert (place != 77.5).all()
