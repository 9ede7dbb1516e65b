"""Linear layers of tokens against float64."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from eco_fast.models.cpu import build
from eco_fast.models.cpu.linear import linear


@pytest.mark.parametrize(("inputs", "outputs"), [(60, 180), (63, 8), (64, 7), (3, 1)])
@pytest.mark.parametrize("size", [(1, 1), (5, 7), (40, 33)], ids=str)
def test_is_as_exact_as_torchs(inputs: int, outputs: int, size: tuple[int, int]) -> None:
    assert build.available("linear"), "the tests need a C++ compiler"
    layer, tokens = nn.Linear(inputs, outputs), torch.randn(2, *size, inputs, requires_grad=True)
    wanted = (tokens, layer.weight, layer.bias)
    upstream = torch.randn(2, outputs, *size).permute(0, 2, 3, 1)  # the layout of any images

    def of(out: Tensor, wanted: tuple[Tensor, ...]) -> list[Tensor]:
        return [out, *torch.autograd.grad(out, wanted, upstream.to(out.dtype))]

    doubles = tuple(tensor.detach().double().requires_grad_() for tensor in wanted)
    exact, plain = of(functional.linear(*doubles), doubles), of(layer(tokens), wanted)
    for our, their, right in zip(of(linear(layer, tokens), wanted), plain, exact, strict=True):
        assert (our - right).norm() <= 2 * (their - right).norm() + 1e-6 * right.norm()


def test_gives_the_same_bits_on_any_number_of_threads() -> None:
    layer, tokens = nn.Linear(20, 30), torch.randn(2, 32, 40, 20)
    threads, results = torch.get_num_threads(), []
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        results.append(torch.autograd.grad(linear(layer, tokens).square().sum(), (layer.weight, layer.bias)))
    torch.set_num_threads(threads)
    for other in results[1:]:
        torch.testing.assert_close(other, results[0], rtol=0, atol=0)


def test_a_frozen_layer_hands_the_gradient_on() -> None:
    layer, tokens = nn.Linear(20, 30).requires_grad_(requires_grad=False), torch.randn(1, 8, 8, 20, requires_grad=True)
    linear(layer, tokens).sum().backward()
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad, layer.weight.sum(0).expand_as(tokens))
    assert layer.weight.grad is None
    layer.bias.requires_grad_()
    linear(layer, tokens).sum().backward()
    torch.testing.assert_close(layer.bias.grad, torch.full((30,), 64.0))
