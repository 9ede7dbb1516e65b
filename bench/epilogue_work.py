"""What residual networks do around their convolutions, without these: for `bench_ops` and the GPU day."""

from typing import Any

import torch
from eco_fast_kernels import (
    ChannelGradients,
    ChannelState,
    ChannelWeights,
    channel_attention,
    column_sums,
    epilogues,
    network_ops,
)
from torch import Tensor

from bench import compulsory
from eco_fast.training.profiling import Work

PATCH, REDUCTION = 48, 16


def epilogue_work(op: str, samples: int, channels: int, device: str) -> tuple[Work, Work, int]:
    """One block forward and backward, bfloat16: by the ops, by their formulas, and the bytes that it has to move.

    Args:
        op: `residual_epilogues` (EDSR's bias, ReLU, factor and residual) or `channel_attention` (RCAN's).
        samples: images of the recipes' LR patch.
        channels: of the images.
        device: where.
    """
    x, y, z = (_image(samples, channels, device) for _ in range(3))
    size = x.element_size()
    if op == "residual_epilogues":
        bias, sums = torch.randn(channels, device=device), column_sums(x, 2)

        def connect(ops: Any) -> None:
            hidden = ops.bias_relu(x, bias)
            ops.add_residual(y, hidden, bias, 0.1)
            _, branch = ops.merge_gradients(y, z, 0.1, None, x.dtype, sums, 0)
            ops.relu_gradient(branch, hidden, sums, 1)

        least = compulsory.bias_relu(size) + compulsory.add_residual(size)
        least += compulsory.merge_gradients(size) + compulsory.relu_gradient(size)
        return lambda: connect(network_ops), lambda: connect(epilogues), least * x.numel()

    squeezed = channels // REDUCTION
    shapes = (channels,), (squeezed, channels), (squeezed,), (channels, squeezed), (channels,)
    weights = ChannelWeights(*(torch.randn(shape, device=device) for shape in shapes))
    state = ChannelState.empty(x, 1, squeezed)
    gradients = ChannelGradients.empty(state)

    def attend(ops: Any) -> None:
        ops.channel_sums(x, state, 0)
        ops.attend_channels(x, y, weights, state, 0)
        ops.attention_gradient(ops.attention_sums(y, z, x, gradients, 0), weights, state, gradients, 0)

    least = compulsory.channel_sums(size) + compulsory.attend_channels(size)
    least += compulsory.attention_sums(size) + compulsory.attention_gradient(size)
    return lambda: attend(network_ops), lambda: attend(channel_attention), least * x.numel()


def _image(samples: int, channels: int, device: str) -> Tensor:
    image = torch.randn(samples, channels, PATCH, PATCH, device=device, dtype=torch.bfloat16)
    return image.contiguous(memory_format=torch.channels_last)
