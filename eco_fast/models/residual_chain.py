"""EDSR's chain of residual blocks, forward and backward by hand: what GPUs run.

    x[0] = x;  x[i + 1] = x[i] + factor * conv(relu(conv(x[i])));  out = x + conv(x[blocks])

Between convolutions a GPU waits for memory, so what counts is how often it reads and writes the activations. Forward
that is one pass for each residual connection, backward one for each ReLU and one for each residual connection; the
same passes add up the gradients of the biases. Automatic differentiation takes a pass for every operator, and
torch.compile still two or three for each of ours: it sees neither into convolutions nor past the sums.
"""

from typing import Any

import torch
from eco_fast_kernels import add_residual, column_sums, merge_gradients, relu_gradient
from torch import Tensor, nn

from eco_fast.models.passes import channels_last, convolution_gradients, convolve, convolve_relu, weights_of

PER_BLOCK = 4  # weights of a block: of each of its two convolutions the filters and the bias


def residual_chain(x: Tensor, chain: nn.Module, factor: float) -> Tensor:
    """The chain's output, like x.

    Args:
        x: floating point [N, C, H, W], channels_last.
        chain: two convolutions for each block, then the last one.
        factor: of each block's branch.
    """
    weights = weights_of(chain, x)
    out: Tensor = _ResidualChain.apply(x.to(weights[0].dtype, memory_format=torch.channels_last), factor, *weights)  # type: ignore[no-untyped-call]
    return out


class _ResidualChain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float, *weights: Tensor) -> Tensor:
        inputs, activations, first = [x], [], x
        for at in range(0, len(weights) - 2, PER_BLOCK):
            filters, bias, more_filters, more_bias = weights[at : at + PER_BLOCK]
            activations.append(convolve_relu(x, filters, bias))
            x = add_residual(x, convolve(activations[-1], more_filters), more_bias, factor)
            inputs.append(x)
        ctx.factor, ctx.blocks = factor, len(activations)
        ctx.save_for_backward(*inputs, *activations, *weights)
        return add_residual(first, convolve(x, weights[-2]), weights[-1])

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        upstream = channels_last(upstream)
        blocks, factor = ctx.blocks, ctx.factor
        inputs, rest = ctx.saved_tensors[: blocks + 1], ctx.saved_tensors[blocks + 1 :]
        activations, weights = rest[:blocks], rest[blocks:]
        gradients: list[Tensor] = [upstream] * len(weights)
        sums = column_sums(upstream, 2 * blocks + 1)  # of the biases, in the weights' order
        merge_gradients(upstream, None, 1.0, None, upstream.dtype, sums, 2 * blocks)
        along, gradients[-2] = convolution_gradients(upstream, inputs[-1], weights[-2])
        out_of_branch = None
        for block in reversed(range(blocks)):
            at = PER_BLOCK * block
            along, branch = merge_gradients(along, out_of_branch, factor, None, along.dtype, sums, 2 * block + 1)
            hidden, gradients[at + 2] = convolution_gradients(branch, activations[block], weights[at + 2])
            hidden = relu_gradient(hidden, activations[block], sums, 2 * block)
            out_of_branch, gradients[at] = convolution_gradients(hidden, inputs[block], weights[at])
        gradients[1::2] = sums.sum(1).to(upstream.dtype).unbind()
        of_x = upstream + along
        return of_x if out_of_branch is None else of_x + out_of_branch, None, *gradients
