"""The hand-written forward and backward passes of GPUs, against automatic differentiation through the plain modules."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from eco_fast.models.attention_chain import attention_chain
from eco_fast.models.edsr import ResidualBlock
from eco_fast.models.network import conv3x3
from eco_fast.models.passes import residual_sum
from eco_fast.models.rcan import AttentionBlock, ResidualGroup
from eco_fast.models.residual_chain import residual_chain
from eco_fast.models.swin_blocks import Layer, shift_mask

FEATURES = 8


def gradients(out: Tensor, sources: Sequence[Tensor]) -> list[Tensor]:
    """Of a weighted sum of the output, and the output itself."""
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return [out, *torch.autograd.grad((out * weights).sum(), sources)]


def assert_equal_passes(plain: Callable[[], Tensor], by_hand: Callable[[], Tensor], sources: Sequence[Tensor]) -> None:
    """In float64 nothing but the order of sums can differ."""
    for one, other in zip(gradients(plain(), sources), gradients(by_hand(), sources), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-11, atol=1e-12)


def image(height: int = 13, width: int = 11, features: int = FEATURES) -> Tensor:
    """float64 [3, features, height, width], channels_last; more pixels than one partial sum has."""
    x = torch.randn(3, features, height, width, dtype=torch.float64)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_()


@pytest.mark.parametrize("factor", [1.0, 0.1])
@pytest.mark.parametrize("blocks", [0, 1, 3])
def test_residual_chain(blocks: int, factor: float) -> None:
    torch.manual_seed(0)
    body = [*(ResidualBlock(FEATURES, factor) for _ in range(blocks)), conv3x3(FEATURES, FEATURES)]
    chain, x = nn.Sequential(*body).double(), image()
    sources = [x, *chain.parameters()]
    assert_equal_passes(lambda: x + chain(x), lambda: residual_chain(x, chain, factor), sources)


@pytest.mark.parametrize("blocks", [1, 3])
def test_attention_chain(blocks: int) -> None:
    torch.manual_seed(0)
    group, x = ResidualGroup(FEATURES, blocks, reduction=4).double(), image()
    sources = [x, *group.parameters()]
    assert_equal_passes(lambda: group(x), lambda: attention_chain(x, group.body), sources)


def test_chains_leave_frozen_weights_alone() -> None:
    torch.manual_seed(0)
    group, x = ResidualGroup(FEATURES, 2, reduction=4).double(), image().detach()
    for block in group.modules():
        if isinstance(block, AttentionBlock):
            block.body[0].weight.requires_grad = False
    sources = [one for one in group.parameters() if one.requires_grad]
    assert_equal_passes(lambda: group(x), lambda: attention_chain(x, group.body), sources)


@pytest.mark.parametrize("dropped", [False, True])
def test_residual_sum(dropped: bool) -> None:
    torch.manual_seed(0)
    residual, x, bias = image(), image(), torch.randn(FEATURES, dtype=torch.float64, requires_grad=True)
    factors = torch.tensor([0.0, 1.25, 1.0], dtype=torch.float64) if dropped else None
    scaled = 1.0 if factors is None else factors.view(-1, 1, 1, 1)
    plain = lambda: residual + scaled * (x + bias.view(-1, 1, 1))  # noqa: E731
    assert_equal_passes(plain, lambda: residual_sum(residual, x, bias, factors), [residual, x, bias])


@pytest.mark.parametrize("dropped", [False, True])
def test_swin_layer(dropped: bool) -> None:
    torch.manual_seed(0)
    layer = Layer(12, depth=3, heads=2, window=8, mlp_ratio=2.0, patch=16).double()
    x = torch.randn(3, 16, 16, 12, dtype=torch.float64, requires_grad=True)
    kept = torch.tensor([[0.0, 1.25, 1.25], [1.25, 1.25, 0.0]]).view(2, 3, 1, 1, 1)
    factors = [None, kept, kept.flip(0)] if dropped else [None] * 3
    mask = shift_mask(16, 16, 8, 4).double()
    sources = [x, *layer.parameters()]
    doubled = [None if one is None else one.double() for one in factors]
    assert_equal_passes(lambda: layer(x, mask, doubled), lambda: layer.on_gpu(x, mask, factors), sources)
