"""The formulas behind convolutions against torch's modules, and their hand-written gradients against autograd."""

import pytest
import torch
from eco_fast_kernels import (
    ChannelGradients,
    ChannelState,
    ChannelWeights,
    add_residual,
    attend_channels,
    attention_gradient,
    attention_sums,
    bias_relu,
    channel_sums,
    column_sums,
    merge_gradients,
    relu_gradient,
    weight_gradients,
)
from eco_fast_kernels.epilogues import PART_PIXELS, partial_sums, parts_of
from torch import Tensor, nn

from eco_fast.models.rcan import ChannelAttention

SIZES = [(1, 8, 1, 1), (2, 8, 5, 7), (3, 16, 12, 16)]
EVERY_SIZE = pytest.mark.parametrize("size", SIZES, ids=str)


def doubles(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def assert_close(made: Tensor, true: Tensor) -> None:
    torch.testing.assert_close(made, true, rtol=1e-12, atol=1e-12)


# --- partial sums ---


@pytest.mark.parametrize("pixels", [1, PART_PIXELS - 1, PART_PIXELS, PART_PIXELS + 1, 3 * PART_PIXELS])
def test_partial_sums(pixels: int) -> None:
    x = torch.randint(-100, 100, (2, 3, 1, pixels)).double()
    parts = [x[..., top : top + PART_PIXELS].sum((2, 3)) for top in range(0, pixels, PART_PIXELS)]
    assert parts_of(x) == len(parts)
    assert torch.equal(partial_sums(x), torch.stack(parts, dim=1))
    assert column_sums(x, 5).shape == (5, 2 * len(parts), 3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_sums_are_made_in_float32(dtype: torch.dtype) -> None:
    x = torch.full((1, 1, 16, 16), 1.0).to(dtype)
    x[0, 0, 0, 0] = 2.0**11 if dtype == torch.float16 else 2.0**8  # one more is lost in the dtype
    assert partial_sums(x).sum() == x.double().sum()
    assert column_sums(x, 1).dtype == torch.float32
    assert ChannelState.empty(x, 2, 1).scales.dtype == torch.float32


# --- the chain of EDSR's blocks ---


@EVERY_SIZE
@pytest.mark.parametrize("has_factors", [False, True])
def test_gradients_of_a_residual_block(size: tuple[int, ...], has_factors: bool) -> None:
    """residual + factor * factors * (g * relu(x + bias1) + bias2), with g in the place of a convolution."""
    residual, x, g = (doubles(*size) for _ in range(3))
    bias1, bias2 = doubles(size[1]), doubles(size[1])
    factors = torch.rand(size[0]) if has_factors else None
    per_sample = 1 if factors is None else factors.double().view(-1, 1, 1, 1)
    true_hidden = nn.functional.relu(x + bias1.view(-1, 1, 1))
    true = residual + 0.1 * per_sample * (g * true_hidden + bias2.view(-1, 1, 1))
    hidden = bias_relu(x, bias1)
    assert_close(hidden, true_hidden)
    assert_close(add_residual(residual, g * hidden, bias2, 0.1, factors), true)

    upstream, other = torch.randn_like(true), torch.randn_like(true)
    expected = torch.autograd.grad(true, (residual, x, bias1, bias2), upstream + other)
    sums = column_sums(x, 2)
    total, of_branch = merge_gradients(upstream, other, 0.1, factors, torch.float64, sums, 1)
    of_x = relu_gradient(of_branch * g, hidden, sums, 0)
    for made, wanted in zip((total, of_x, *sums.sum(1)), expected, strict=True):
        assert_close(made, wanted)


def test_what_is_the_same_is_not_made_twice() -> None:
    first, second = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    sums = column_sums(first, 1)
    total, branch = merge_gradients(first, None, 1.0, None, torch.float32, sums, 0)
    assert total is first
    assert branch is first
    assert torch.equal(sums[0], partial_sums(first)[0])
    total, branch = merge_gradients(first, second, 1.0, None, torch.bfloat16, sums, 0)
    assert torch.equal(total, first + second)
    assert torch.equal(branch, (first + second).bfloat16())
    assert torch.equal(sums[0], partial_sums(branch)[0])


# --- RCAN's attention ---


@EVERY_SIZE
@pytest.mark.parametrize("has_second", [False, True])
def test_gradients_of_the_attention_block(size: tuple[int, ...], has_second: bool) -> None:
    """Of all inputs and weights, two blocks in a chain, against the network's own module."""
    modules = [ChannelAttention(size[1], 4).double() for _ in range(2)]
    biases, xs = [doubles(size[1]) for _ in modules], [doubles(*size) for _ in modules]
    residual = doubles(*size)
    chain = [
        ChannelWeights(bias, *(getattr(module.conv_du[place], kind) for place in (0, 2) for kind in ("weight", "bias")))
        for bias, module in zip(biases, modules, strict=True)
    ]
    true = residual
    for bias, x, module in zip(biases, xs, modules, strict=True):
        true = true + module(x + bias.view(-1, 1, 1))
    upstream, other = torch.randn_like(true), torch.randn_like(true) if has_second else None
    arrived = upstream if other is None else upstream + other
    wanted = torch.autograd.grad(true, (*xs, *chain[0], *chain[1]), arrived)

    with torch.no_grad():
        out, state = residual, ChannelState.empty(residual, 2, size[1] // 4)
        for index, (x, weights) in enumerate(zip(xs, chain, strict=True)):
            channel_sums(x, state, index)
            out = attend_channels(x, out, weights, state, index)
        assert_close(out, true)
        gradients, of_xs = ChannelGradients.empty(state), []
        for index, (x, weights) in enumerate(zip(xs, chain, strict=True)):
            total = attention_sums(upstream, other, x, gradients, index)
            assert (total is upstream) == (not has_second)
            of_xs.append(attention_gradient(arrived, weights, state, gradients, index))
    of_weights = weight_gradients(state, gradients)
    made = (*of_xs, *(one[0] for one in of_weights), *(one[1] for one in of_weights))
    for one, other_one in zip(made, wanted, strict=True):
        assert_close(one.view_as(other_one), other_one)


def test_the_state_is_what_the_module_computes() -> None:
    module, x = ChannelAttention(8, 2).double(), doubles(2, 8, 9, 17)
    weights = ChannelWeights(
        torch.zeros(8).double(),
        *(getattr(module.conv_du[place], kind) for place in (0, 2) for kind in ("weight", "bias")),
    )
    state = ChannelState.empty(x, 1, 4)
    with torch.no_grad():
        channel_sums(x, state, 0)
        attend_channels(x, x, weights, state, 0)
        means = x.mean((2, 3), keepdim=True)
        hidden = module.conv_du[:2](means)
        for made, true in ((state.means, means), (state.hidden, hidden), (state.scales, module.conv_du[2:](hidden))):
            assert_close(made[0], true.flatten(1))
