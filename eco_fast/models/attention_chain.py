"""RCAN's chain of attention blocks, forward and backward by hand: what GPUs run.

    x[0] = x;  x[i + 1] = x[i] + attention(conv(relu(conv(x[i]))));  out = x + conv(x[blocks])

As `residual_chain`, but what the channels are multiplied with is known only when the whole branch has been read: two
passes for each block forward, and backward two for each residual connection and one for each ReLU.
"""

from typing import Any

import torch
from eco_fast_kernels import (
    ChannelGradients,
    ChannelState,
    ChannelWeights,
    add_residual,
    attend_channels,
    attention_gradient,
    attention_sums,
    channel_sums,
    column_sums,
    merge_gradients,
    relu_gradient,
    weight_gradients,
)
from torch import Tensor, nn

from eco_fast.models.passes import channels_last, convolution_gradients, convolve, convolve_relu, weights_of

PER_BLOCK = 8  # weights of a block: filters and bias of four convolutions, the last two of the attention


def attention_chain(x: Tensor, chain: nn.Module) -> Tensor:
    """The chain's output, like x.

    Args:
        x: floating point [N, C, H, W], channels_last.
        chain: four convolutions for each block, two of them of the attention, then the last one.
    """
    weights = weights_of(chain, x)
    out: Tensor = _AttentionChain.apply(x.to(weights[0].dtype, memory_format=torch.channels_last), *weights)  # type: ignore[no-untyped-call]
    return out


class _AttentionChain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *weights: Tensor) -> Tensor:
        inputs, activations, branches, first = [x], [], [], x
        state = ChannelState.empty(x, len(weights) // PER_BLOCK, squeezed=len(weights[4]))
        for block in range(len(weights) // PER_BLOCK):
            filters, bias, more_filters, *rest = weights[PER_BLOCK * block : PER_BLOCK * (block + 1)]
            activations.append(convolve_relu(x, filters, bias))
            branches.append(convolve(activations[-1], more_filters))
            channel_sums(branches[-1], state, block)
            x = attend_channels(branches[-1], x, ChannelWeights(*rest), state, block)
            inputs.append(x)
        ctx.blocks = len(branches)
        ctx.save_for_backward(*state, *inputs, *activations, *branches, *weights)
        return add_residual(first, convolve(x, weights[-2]), weights[-1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        upstream = channels_last(upstream)
        blocks, saved = ctx.blocks, list(ctx.saved_tensors)
        state = ChannelState(*_take(saved, len(ChannelState._fields)))
        inputs, activations, branches = (_take(saved, count) for count in (blocks + 1, blocks, blocks))
        weights = saved
        gradients: list[Tensor] = [upstream] * len(weights)
        sums, sought = column_sums(upstream, blocks + 1), ChannelGradients.empty(state)
        merge_gradients(upstream, None, 1.0, None, upstream.dtype, sums, blocks)
        along, gradients[-2] = convolution_gradients(upstream, inputs[-1], weights[-2])
        out_of_branch = None
        for block in reversed(range(blocks)):
            at = PER_BLOCK * block
            along = attention_sums(along, out_of_branch, branches[block], sought, block)
            own = ChannelWeights(*weights[at + 3 : at + PER_BLOCK])
            branch = attention_gradient(along, own, state, sought, block)
            hidden, gradients[at + 2] = convolution_gradients(branch, activations[block], weights[at + 2])
            hidden = relu_gradient(hidden, activations[block], sums, block)
            out_of_branch, gradients[at] = convolution_gradients(hidden, inputs[block], weights[at])
        of_biases = sums.sum(1).to(upstream.dtype).unbind()
        gradients[1::PER_BLOCK] = of_biases
        for place, every in enumerate(weight_gradients(state, sought), 3):
            gradients[place:-2:PER_BLOCK] = every.to(upstream.dtype).unbind()
        for at, weight in enumerate(weights):
            gradients[at] = gradients[at].view_as(weight)
        of_x = upstream + along
        return of_x if out_of_branch is None else of_x + out_of_branch, *gradients


def _take(tensors: list[Tensor], count: int) -> list[Tensor]:
    taken = tensors[:count]
    del tensors[:count]
    return taken
