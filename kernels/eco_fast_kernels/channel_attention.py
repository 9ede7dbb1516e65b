"""RCAN's channel attention, with the bias before it and the residual behind it, in plain torch: the definition.

    z = x + bias                               x: the convolution's output without its bias, [N, C, H, W]
    means = mean of z over the pixels          [N, C]
    hidden = relu(means @ down + down_bias)    [N, R]
    scales = sigmoid(hidden @ up + up_bias)    [N, C]
    out = residual + scales * z

Source: Zhang et al., ECCV 2018. Images are channels_last, every value is computed in float32 (float64 of float64) and
rounded once; what comes of the means is float32.

The data dependence asks for two passes over the image in each direction: `channel_sums` and `attend_channels` forward,
`attention_sums` and `attention_gradient` backward. Sums over pixels are partial, as `epilogues` says. Of a chain of
blocks each fills its place, `index`, in tensors of the whole chain (`ChannelState`), so that a few reductions over the
samples end the gradients of all its weights (`weight_gradients`).
"""

from typing import NamedTuple

import torch
from torch import Tensor

from eco_fast_kernels.epilogues import accumulated, partial_sums, parts_of


class ChannelWeights(NamedTuple):
    """Of one block; floating point."""

    bias: Tensor
    """[C]: of the convolution before."""
    down: Tensor
    """[R, C], or a 1x1 convolution's [R, C, 1, 1]."""
    down_bias: Tensor
    """[R]."""
    up: Tensor
    """[C, R], or [C, R, 1, 1]."""
    up_bias: Tensor
    """[C]."""


class ChannelState(NamedTuple):
    """What the blocks of a chain leave to the backward pass: float32, each block at its index."""

    sums: Tensor
    """[blocks, N, parts, C]: partial sums of x over the pixels."""
    means: Tensor
    """[blocks, N, C]."""
    hidden: Tensor
    """[blocks, N, R]: behind the ReLU."""
    scales: Tensor
    """[blocks, N, C]."""

    @classmethod
    def empty(cls, x: Tensor, blocks: int, squeezed: int) -> "ChannelState":
        """For images like x, [N, C, H, W], and hidden layers of R = `squeezed`."""
        count, channels = x.shape[:2]
        shapes = ((count, parts_of(x), channels), (count, channels), (count, squeezed), (count, channels))
        return cls(*(x.new_empty((blocks, *shape), dtype=accumulated(x.dtype)) for shape in shapes))


class ChannelGradients(NamedTuple):
    """What the backward pass of a chain leaves to `weight_gradients`: float32, each block at its index."""

    sums: Tensor
    """[blocks, 2, N, parts, C]: partial sums of the upstream gradient, and of its product with x."""
    of_bias: Tensor
    """[blocks, N, C]: of the convolution's bias, by sample."""
    of_hidden: Tensor
    """[blocks, N, R]: before the ReLU."""
    of_scales: Tensor
    """[blocks, N, C]: before the sigmoid."""

    @classmethod
    def empty(cls, state: ChannelState) -> "ChannelGradients":
        """For the chain of a state."""
        blocks, *rest = state.sums.shape
        return cls(
            state.sums.new_empty((blocks, 2, *rest)),
            *(torch.empty_like(one) for one in (state.means, state.hidden, state.scales)),
        )


def channel_sums(x: Tensor, state: ChannelState, index: int) -> None:
    """The first pass: `state.sums[index]`."""
    state.sums[index] = partial_sums(x)


def attend_channels(x: Tensor, residual: Tensor, weights: ChannelWeights, state: ChannelState, index: int) -> Tensor:
    """The second pass: out, like the residual; fills the rest of the state at the index."""
    bias, down, down_bias, up, up_bias = _wide(weights, x)
    means = state.sums[index].sum(1) / (x.shape[2] * x.shape[3]) + bias
    hidden = (means @ down.T + down_bias).relu()
    scales = (hidden @ up.T + up_bias).sigmoid()
    state.means[index], state.hidden[index], state.scales[index] = means, hidden, scales
    z = x.to(bias.dtype) + bias.view(-1, 1, 1)
    return (residual.to(bias.dtype) + scales[:, :, None, None] * z).to(residual.dtype)


def attention_sums(first: Tensor, second: Tensor | None, x: Tensor, gradients: ChannelGradients, index: int) -> Tensor:
    """The first pass backward: the upstream gradient first + second (`second` may be None), and its sums.

    Returns:
        first + second like the first, rounded before it is used; empty without a second. `gradients.sums[index]` is
        filled.
    """
    wide = accumulated(x.dtype)
    upstream = first if second is None else (first.to(wide) + second.to(wide)).to(first.dtype)
    gradients.sums[index, 0] = partial_sums(upstream)
    gradients.sums[index, 1] = partial_sums(upstream.to(wide) * x.to(wide))
    return first.new_empty(0) if second is None else upstream


def attention_gradient(
    upstream: Tensor, weights: ChannelWeights, state: ChannelState, gradients: ChannelGradients, index: int
) -> Tensor:
    """The second pass backward: the gradient of x, like the upstream; fills the rest of `gradients` at the index."""
    bias, down, _, up, _ = _wide(weights, upstream)
    of_sum, of_product = gradients.sums[index].sum(2)
    hidden, scales = state.hidden[index], state.scales[index]
    of_scales = (of_product + bias * of_sum) * scales * (1 - scales)
    of_hidden = (of_scales @ up) * (hidden > 0)
    of_pixel = of_hidden @ down / (upstream.shape[2] * upstream.shape[3])
    gradients.of_scales[index], gradients.of_hidden[index] = of_scales, of_hidden
    gradients.of_bias[index] = scales * of_sum + of_pixel * (upstream.shape[2] * upstream.shape[3])
    gradient: Tensor = scales[:, :, None, None] * upstream.to(bias.dtype) + of_pixel[:, :, None, None]
    return gradient.to(upstream.dtype)


def weight_gradients(state: ChannelState, gradients: ChannelGradients) -> ChannelWeights:
    """Of all the chain's blocks, float32 [blocks, ...]: sums over the samples.

    Products are elementwise and then added up: a few thousand numbers are not worth a matrix product's launch.
    """
    return ChannelWeights(
        bias=gradients.of_bias.sum(1),
        down=(gradients.of_hidden[..., :, None] * state.means[..., None, :]).sum(1),
        down_bias=gradients.of_hidden.sum(1),
        up=(gradients.of_scales[..., :, None] * state.hidden[..., None, :]).sum(1),
        up_bias=gradients.of_scales.sum(1),
    )


def _wide(weights: ChannelWeights, x: Tensor) -> list[Tensor]:
    return [(one.flatten(1) if one.ndim > 1 else one).to(accumulated(x.dtype)) for one in weights]
