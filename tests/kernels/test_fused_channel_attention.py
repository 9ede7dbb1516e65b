"""The kernels of channel attention against its formulas in float64: at most twice the error of plain torch."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import torch
from eco_fast_kernels import ChannelGradients, ChannelState, ChannelWeights, channel_attention
from eco_fast_kernels.fused import channel_attention as fused
from eco_fast_kernels.fused import channel_attention_backward
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
BLOCKS, INDEX = 3, 1  # of the chain, and the block in question
PAIRS = [(one, one) for one in FLOATS] + [(torch.bfloat16, torch.float32), (torch.float32, torch.float16)]


class Block(NamedTuple):
    """One block of a chain, with all that both passes need, as plain torch fills it."""

    x: Tensor
    residual: Tensor
    first: Tensor
    second: Tensor
    weights: ChannelWeights
    state: ChannelState
    gradients: ChannelGradients


def block_of(
    size: tuple[int, ...],
    squeezed: int = 4,
    dtype: torch.dtype = torch.float32,
    of_residual: torch.dtype | None = None,
    of_weights: torch.dtype = torch.float32,
) -> Block:
    """Random images and weights; what the ops read of the chain is filled, what they are to fill is NaN."""
    channels, others = size[1], of_residual or dtype
    x, *rest = (random_images(size, one) for one in (dtype, others, others, others))
    shapes = (channels,), (squeezed, channels, 1, 1), (squeezed,), (channels, squeezed, 1, 1), (channels,)
    weights = ChannelWeights(*(torch.randn(shape).div(len(shape)).to(of_weights) for shape in shapes))
    state = ChannelState.empty(x, BLOCKS, squeezed)
    channel_attention.channel_sums(x, state, INDEX)
    channel_attention.attend_channels(x, rest[0], weights, state, INDEX)
    gradients = ChannelGradients.empty(state)
    channel_attention.attention_sums(rest[1], rest[2], x, gradients, INDEX)
    residual, first, second = rest
    return Block(x, residual, first, second, weights, state, gradients)


def moved(values: tuple[Tensor, ...], device: str) -> list[Tensor]:
    """Copies on the device."""
    return [one.to(device, copy=True) for one in values]


def emptied(values: Sequence[Tensor], *kept: int) -> list[Tensor]:
    """NaN but for those that an op reads."""
    return [one if place in kept else torch.full_like(one, float("nan")) for place, one in enumerate(values)]


def doubled(values: Sequence[Tensor]) -> list[Tensor]:
    return [one.double() for one in values]


def assert_places(made: Sequence[Tensor], plain: Sequence[Tensor], true: Sequence[Tensor], device: str) -> None:
    """The block's place is filled in each of a chain's tensors, and no other."""
    for one, other, exact in zip(made, plain, true, strict=True):
        assert_exact_enough(one[INDEX], other[INDEX], exact[INDEX], device, units=2)  # sums of up to 256 products
        assert one[[place for place in range(BLOCKS) if place != INDEX]].isnan().all()


def attend(block: Block, device: str) -> tuple[Tensor, list[Tensor]]:
    """The second pass forward by the kernels, from sums that are there."""
    state = moved(tuple(emptied(block.state, 0)), device)
    images = block.x.to(device), block.residual.to(device)
    return OPS.attend_channels(*images, *moved(block.weights, device), *state, INDEX), state


def differentiate(block: Block, device: str) -> tuple[Tensor, list[Tensor]]:
    """The second pass backward by the kernels, from sums that are there."""
    gradients = moved(tuple(emptied(block.gradients, 0)), device)
    weights, state = ChannelWeights(*moved(block.weights, device)), ChannelState(*moved(block.state, device))
    made = OPS.attention_gradient(
        block.first.to(device), weights.bias, weights.down, weights.up, state.hidden, state.scales, *gradients, INDEX
    )
    return made, gradients


def check_attend(block: Block, device: str) -> None:
    made, state = attend(block, device)
    results = []
    for widen in (list, doubled):
        values = ChannelState(*widen(emptied(block.state, 0)))
        x, residual = widen([block.x, block.residual])
        out = channel_attention.attend_channels(x, residual, ChannelWeights(*widen(block.weights)), values, INDEX)
        results.append((out, values))
    (plain, of_plain), (true, of_true) = results
    assert_exact_enough(made, plain, true, device)
    assert_places(state[1:], of_plain[1:], of_true[1:], device)


def check_gradient(block: Block, device: str) -> None:
    made, gradients = differentiate(block, device)
    results = []
    for widen in (list, doubled):
        values = ChannelGradients(*widen(emptied(block.gradients, 0)))
        weights, state = ChannelWeights(*widen(block.weights)), ChannelState(*widen(block.state))
        (upstream,) = widen([block.first])
        results.append((channel_attention.attention_gradient(upstream, weights, state, values, INDEX), values))
    (plain, of_plain), (true, of_true) = results
    assert_exact_enough(made, plain, true, device)
    assert_places(gradients[1:], of_plain[1:], of_true[1:], device)


# --- forward ---


@EVERY_SIZE
@EVERY_DTYPE
def test_channel_sums(device: str, size: tuple[int, ...], dtype: torch.dtype) -> None:
    x = random_images(size, dtype)
    sums = ChannelState.empty(x, BLOCKS, 1).sums.to(device)
    OPS.channel_sums(x.to(device), sums, INDEX)
    assert_partial_sums(sums, INDEX, x)


@EVERY_SIZE
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_attend_channels(device: str, size: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_attend(block_of(size, 4, *dtypes), device)


# --- backward ---


@EVERY_SIZE
@EVERY_DTYPE
@pytest.mark.parametrize("has_second", [True, False])
def test_attention_sums(device: str, size: tuple[int, ...], dtype: torch.dtype, has_second: bool) -> None:
    block = block_of(size, 1, dtype)
    second = block.second if has_second else None
    elsewhere = ChannelGradients(*emptied(block.gradients))
    (made,) = moved((elsewhere.sums,), device)
    images = block.first.to(device), None if second is None else second.to(device), block.x.to(device)
    upstream = OPS.attention_sums(*images, made, INDEX)
    plain = channel_attention.attention_sums(block.first, second, block.x, elsewhere, INDEX)
    assert (upstream.dtype, upstream.numel()) == (plain.dtype, plain.numel())
    if has_second:
        assert_exact_enough(upstream, plain, block.first.double() + block.second.double(), device)
    summed = upstream.cpu() if has_second else block.first
    assert_partial_sums(made[:, 0], INDEX, summed)  # of the rounded values
    assert_partial_sums(made[:, 1], INDEX, summed.double() * block.x.double())


@EVERY_SIZE
@pytest.mark.parametrize("dtypes", PAIRS, ids=str)
def test_attention_gradient(device: str, size: tuple[int, ...], dtypes: tuple[torch.dtype, torch.dtype]) -> None:
    check_gradient(block_of(size, 4, *dtypes), device)


# --- both ---

BOTH = pytest.mark.parametrize("check", [check_attend, check_gradient])
Check = Callable[[Block, str], None]


@BOTH
@pytest.mark.parametrize("squeezed", [1, 3, 16, 20])
def test_hidden_layers_of_any_size(device: str, check: Check, squeezed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "SMALL_BLOCK", 64)  # values: a block of 8 rows
    check(block_of((2, 7, 3, 5), squeezed), device)


@BOTH
@pytest.mark.parametrize("of_weights", [torch.bfloat16, torch.float16], ids=str)
def test_weights_of_any_dtype(device: str, check: Check, of_weights: torch.dtype) -> None:
    check(block_of(SIZE, 4, torch.bfloat16, of_weights=of_weights), device)


@BOTH
@pytest.mark.parametrize("most", [1, 2, 3, 4, 5])
def test_many_parts_are_added_up_first(device: str, check: Check, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fused, "MOST_PARTS", most)
    monkeypatch.setattr(fused, "SMALL_BLOCK", 16)  # values: two parts at a time
    groups = []

    def counted(*arguments: Any) -> Any:
        groups.append(fused.few_sums(*arguments)[0].shape[-2])
        return fused.few_sums(*arguments)

    monkeypatch.setattr(channel_attention_backward, "few_sums", counted)
    check(block_of((2, 5, 20, 31), 2), device)  # five parts
    assert groups in ([], [{1: 1, 2: 2, 3: 3, 4: 3, 5: 5}[most]])


def test_no_sample_has_more_parts_than_every_program_adds_up() -> None:
    for parts in (65, 128, 5403, 69120):
        of_group = -(-parts // fused.MOST_PARTS)
        assert -(-parts // of_group) <= fused.MOST_PARTS


@EVERY_DTYPE
def test_a_value_that_is_not_finite_shows(device: str, dtype: torch.dtype) -> None:
    """In its own sample alone."""
    block = block_of((2, 5, 3, 3), 2, dtype)
    block.state.sums[INDEX, 1, 0, 2] = float("nan")
    made, _ = attend(block, device)
    assert made[0].isfinite().all()
    assert made[1].isnan().all()
    block.gradients.sums[INDEX, :, 1, 0, 2] = float("nan")
    made, gradients = differentiate(block, device)
    assert made[0].isfinite().all()
    assert made[1].isnan().any()
    assert gradients[3][INDEX, 1, 2].isnan()


@pytest.mark.parametrize("size", SIZES[1:3], ids=str)
def test_same_input_same_bits(device: str, size: tuple[int, ...]) -> None:
    block = block_of(size)
    for work in (attend, differentiate):
        (first, some), (second, others) = (work(block, device) for _ in range(2))
        assert torch.equal(first, second)
        assert all(torch.equal(one[INDEX], other[INDEX]) for one, other in zip(some, others, strict=True))


def test_any_layout_gives_the_same_bits(device: str) -> None:
    block = block_of(SIZE)
    other = block._replace(
        x=block.x.contiguous(),
        residual=block.residual.contiguous(),
        first=block.first.contiguous(),
        weights=ChannelWeights(*(one.repeat_interleave(2, 0)[::2] for one in block.weights)),
    )
    for work in (attend, differentiate):
        (first, _), (second, _) = (work(one, device) for one in (block, other))
        assert torch.equal(first, second)


@pytest.mark.parametrize("size", SIZES[:2], ids=str)
def test_nothing_is_written_elsewhere(device: str, size: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    block, pads = block_of(size), []

    def inside(like: Tensor) -> Tensor:
        pads.append(torch.full((like.numel() + 8192,), 77.5, device=device))
        return pads[-1].as_strided(like.shape, like.stride(), 4096)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", inside)
        for work in (attend, differentiate):
            work(block, device)
    assert len(pads) == 2
    for pad in pads:
        assert (pad[:4096] == 77.5).all()
        assert (pad[-4096:] == 77.5).all()
        assert (pad[4096:-4096] != 77.5).all()
