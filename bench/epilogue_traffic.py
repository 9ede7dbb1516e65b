"""Launches and bytes of what follows convolutions, in both of the tables of `bench.traffic`."""

from collections.abc import Callable

import torch
from eco_fast_kernels import ChannelGradients, ChannelState, ChannelWeights, column_sums
from eco_fast_kernels.fused import channel_attention_backward  # noqa: F401 - registers the ops, as it imports the others
from torch import Tensor

from bench import compulsory
from bench.counting import Counts, Work, count_compiled, count_eager, count_fused, requested_bytes

CHANNELS, SQUEEZED, ELEMENT_SIZE = 64, 4, 2
OPS = torch.ops.eco_fast


def random_image(side: int, samples: int = 1) -> Tensor:
    """Bfloat16, channels_last."""
    image = torch.randn(samples, CHANNELS, side, side, dtype=torch.bfloat16)
    return image.contiguous(memory_format=torch.channels_last)


def random_weights() -> ChannelWeights:
    """Of one of RCAN's blocks."""
    shapes = (CHANNELS,), (SQUEEZED, CHANNELS), (SQUEEZED,), (CHANNELS, SQUEEZED), (CHANNELS,)
    return ChannelWeights(*(torch.randn(shape).requires_grad_() for shape in shapes))


def compare_forms() -> dict[str, dict[str, Counts]]:
    """Counts by work and form; each with its gradients, but for what a whole chain adds up at its end."""
    first, second, upstream = (random_image(12, samples=2) for _ in range(3))
    bias, weights = torch.randn(CHANNELS).requires_grad_(), random_weights()
    sums, factor = column_sums(first, 1), 0.1
    state = ChannelState.empty(first, 1, SQUEEZED)
    gradients = ChannelGradients.empty(state)

    def rectify(x: Tensor) -> Tensor:
        return (x + bias.to(x.dtype).view(-1, 1, 1)).relu()

    def add(residual: Tensor, x: Tensor) -> Tensor:
        return residual + factor * (x + bias.to(x.dtype).view(-1, 1, 1))

    def attend(residual: Tensor, x: Tensor) -> Tensor:
        z = x + weights.bias.to(x.dtype).view(-1, 1, 1)
        down, down_bias, up, up_bias = (one.to(x.dtype) for one in weights[1:])
        hidden = torch.nn.functional.linear(z.mean((2, 3)), down, down_bias).relu()
        return residual + torch.nn.functional.linear(hidden, up, up_bias).sigmoid()[:, :, None, None] * z

    @torch.no_grad()
    def rectify_fused() -> None:
        OPS.relu_gradient(upstream, OPS.bias_relu(first, bias), sums, 0)

    @torch.no_grad()
    def add_fused() -> None:
        OPS.add_residual(first, second, bias, factor, None)
        OPS.merge_gradients(upstream, None, factor, None, first.dtype, sums, 0)

    @torch.no_grad()
    def attend_fused() -> None:
        OPS.channel_sums(second, state.sums, 0)
        OPS.attend_channels(second, first, *weights, *state, 0)
        OPS.attention_sums(upstream, None, second, gradients.sums, 0)
        bias, down, _, up, _ = weights
        OPS.attention_gradient(upstream, bias, down, up, state.hidden, state.scales, *gradients, 0)

    return {
        "bias and ReLU, bf16": _forms(rectify, [first], upstream, rectify_fused),
        "bias, factor and residual, bf16": _forms(add, [first, second], upstream, add_fused),
        "RCAN's channel attention, bf16": _forms(attend, [first, second], upstream, attend_fused),
    }


def _forms(plain: Callable[..., Tensor], images: list[Tensor], upstream: Tensor, fused: Work) -> dict[str, Counts]:
    leaves = [image.detach().requires_grad_() for image in images]
    compiled = torch.compile(plain, dynamic=False)
    return {
        "eager": count_eager(lambda: plain(*leaves).backward(upstream)),
        "compiled": count_compiled(lambda: compiled(*leaves).backward(upstream)),
        "fused": count_fused(fused),
    }


@torch.no_grad()
def measure_kernels(patch: int) -> dict[str, tuple[float, float]]:
    """Compulsory and requested bytes per value, of one sample."""
    x, y, z = (random_image(patch) for _ in range(3))
    weights, sums, dtype = random_weights(), column_sums(x, 1), x.dtype
    bias, down, _, up, _ = weights
    state = ChannelState.empty(x, 1, SQUEEZED)
    gradients = ChannelGradients.empty(state)
    size, kept = ELEMENT_SIZE, (state.hidden, state.scales)
    works: dict[str, tuple[int, Work]] = {
        "bias_relu": (compulsory.bias_relu(size), lambda: OPS.bias_relu(x, bias)),
        "add_residual": (compulsory.add_residual(size), lambda: OPS.add_residual(y, x, bias, 0.1, None)),
        "relu_gradient": (compulsory.relu_gradient(size), lambda: OPS.relu_gradient(y, x, sums, 0)),
        "merge_gradients": (
            compulsory.merge_gradients(size, scaled=False),
            lambda: OPS.merge_gradients(y, z, 1.0, None, dtype, sums, 0),
        ),
        "merge_gradients, scaled": (
            compulsory.merge_gradients(size),
            lambda: OPS.merge_gradients(y, z, 0.1, None, dtype, sums, 0),
        ),
        "channel_sums": (compulsory.channel_sums(size), lambda: OPS.channel_sums(x, state.sums, 0)),
        "attend_channels": (
            compulsory.attend_channels(size),
            lambda: OPS.attend_channels(x, y, *weights, *state, 0),
        ),
        "attention_sums": (
            compulsory.attention_sums(size),
            lambda: OPS.attention_sums(y, z, x, gradients.sums, 0),
        ),
        "attention_gradient": (
            compulsory.attention_gradient(size),
            lambda: OPS.attention_gradient(y, bias, down, up, *kept, *gradients, 0),
        ),
    }
    return {
        f"{name}, {CHANNELS} channels, bf16": (least, requested_bytes(work) / x.numel())
        for name, (least, work) in works.items()
    }
