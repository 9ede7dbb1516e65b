"""What networks do around convolutions and products, forward and backward: for `bench_ops` and the GPU day."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from eco_fast_kernels import (
    ChannelGradients,
    ChannelState,
    ChannelWeights,
    add_norm,
    attention,
    bias_gelu,
    channel_attention,
    column_sums,
    epilogues,
    network_ops,
    normalisation,
    window_attention,
)
from torch import Tensor

from bench import compulsory
from eco_fast.training.profiling import Work

PATCH, REDUCTION, WINDOW, HEADS = 48, 16, 8, 6
BF16 = torch.bfloat16
Ways = dict[str, Work]


def network_op_work(op: str, samples: int, channels: int, device: str) -> tuple[Ways, int]:
    """A part of a network's block with its gradients, bfloat16, and the bytes that it has to move.

    Args:
        op: `residual_epilogues` (EDSR's bias, ReLU, factor and residual), `channel_attention` (RCAN's), `add_norm` (a
            SwinIR block's end and the next one's LayerNorm, on a float32 stream), `bias_gelu` (an MLP's hidden layer)
            or `window_attention` (of 6 heads, windows of 8 shifted by 4).
        samples: images of the recipes' LR patch.
        channels: of the images.
        device: where.

    Returns:
        What does it by the op, by the reference in plain torch, and by the reference compiled.
    """
    makers = {
        "residual_epilogues": _residual_epilogues,
        "channel_attention": _channel_attention,
        "add_norm": _add_norm,
        "bias_gelu": _bias_gelu,
        "window_attention": _window_attention,
    }
    return makers[op](samples, channels, device)


def _residual_epilogues(samples: int, channels: int, device: str) -> tuple[Ways, int]:
    x, y, z = (_image(samples, channels, device) for _ in range(3))
    size, bias, sums = x.element_size(), torch.randn(channels, device=device), column_sums(x, 2)

    def connect(ops: Any) -> None:
        hidden = ops.bias_relu(x, bias)
        ops.add_residual(y, hidden, bias, 0.1)
        _, branch = ops.merge_gradients(y, z, 0.1, None, x.dtype, sums, 0)
        ops.relu_gradient(branch, hidden, sums, 1)

    least = compulsory.bias_relu(size) + compulsory.add_residual(size)
    least += compulsory.merge_gradients(size) + compulsory.relu_gradient(size)
    return _three(lambda: connect(network_ops), lambda: connect(epilogues)), least * x.numel()


def _channel_attention(samples: int, channels: int, device: str) -> tuple[Ways, int]:
    x, y, z = (_image(samples, channels, device) for _ in range(3))
    size, squeezed = x.element_size(), channels // REDUCTION
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
    return _three(lambda: attend(network_ops), lambda: attend(channel_attention)), least * x.numel()


def _add_norm(samples: int, channels: int, device: str) -> tuple[Ways, int]:
    stream, branch = (torch.randn(samples, PATCH, PATCH, channels, device=device, dtype=one) for one in (None, BF16))
    leaves = [stream, branch, *(torch.randn(channels, device=device) for _ in range(3))]
    factors = torch.rand(samples, device=device)

    def forward(op: Callable[..., tuple[Tensor, Tensor]]) -> tuple[Tensor, ...]:
        return op(stream, branch, leaves[2], factors, leaves[3], leaves[4], 1e-5, BF16)

    least = sum(compulsory.add_norm(4, 2, of_gradient=backward) for backward in (False, True))
    return _with_gradients(forward, (add_norm, normalisation.add_norm), leaves), least * stream.numel()


def _bias_gelu(samples: int, channels: int, device: str) -> tuple[Ways, int]:
    x = torch.randn(samples, PATCH, PATCH, channels, device=device, dtype=BF16)
    bias = torch.randn(channels, device=device)

    def forward(op: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return (op(x, bias),)

    least = sum(compulsory.bias_gelu(2, of_gradient=backward) for backward in (False, True))
    return _with_gradients(forward, (bias_gelu, normalisation.bias_gelu), [x, bias]), least * x.numel()


def _window_attention(samples: int, channels: int, device: str) -> tuple[Ways, int]:
    qkv = torch.randn(samples, PATCH, PATCH, 3 * channels, device=device, dtype=BF16)
    qkv_bias, table = (torch.randn(shape, device=device) for shape in ((3 * channels,), ((2 * WINDOW - 1) ** 2, HEADS)))

    def forward(op: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        return (op(qkv, qkv_bias, table, WINDOW, WINDOW // 2),)

    ops = (window_attention, attention.window_attention)
    least = compulsory.window_attention(qkv.element_size())
    return _with_gradients(forward, ops, [qkv, qkv_bias, table]), least * qkv.numel() // 3


def _image(samples: int, channels: int, device: str) -> Tensor:
    image = torch.randn(samples, channels, PATCH, PATCH, device=device, dtype=BF16)
    return image.contiguous(memory_format=torch.channels_last)


def _with_gradients(
    forward: Callable[[Any], tuple[Tensor, ...]], ops: tuple[Any, Any], leaves: Iterable[Tensor]
) -> Ways:
    """The op, its reference and that compiled in a forward pass, each with the gradients of all leaves."""
    inputs = [leaf.requires_grad_() for leaf in leaves]
    ours, plain = ops
    upstream = [torch.randn_like(made) for made in forward(plain)]

    def both_ways(run: Callable[[], tuple[Tensor, ...]]) -> object:
        return torch.autograd.grad(run(), inputs, upstream)

    ways = _three(lambda: forward(ours), lambda: forward(plain))
    return {name: partial(both_ways, run) for name, run in ways.items()}


def _three(ours: Callable[[], Any], plain: Callable[[], Any]) -> dict[str, Callable[[], Any]]:
    return {"op": ours, "reference": plain, "compiled": torch.compile(plain, dynamic=False)}
