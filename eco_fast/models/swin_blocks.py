"""What SwinIR's body is made of: attention in windows and MLPs, with the state-dict keys of the authors' code.

Tokens are kept as the image they are, [N, h, w, C]: LayerNorm and linear layers read their last dimension, convolutions
see the same memory as channels_last, and attention finds the windows in it.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from eco_fast_kernels import add_norm, bias_gelu, takes_windows, window_attention
from eco_fast_kernels.attention import MASKED, relative_positions
from torch import Tensor, nn
from torch.nn import functional

from eco_fast.models.cpu.linear import linear
from eco_fast.models.cpu.window_attention import attend, attend_by_torch, cut
from eco_fast.models.network import RepeatedBlock, conv3x3
from eco_fast.models.passes import computed_in, convolve, residual_sum, weights_of


class Stream(NamedTuple):
    """The residual stream on a GPU, with the branch that the next norm or convolution adds to it in its own pass."""

    tokens: Tensor
    """[N, h, w, C], in what the stream is kept in."""
    branch: Tensor | None = None
    """[N, h, w, C], in what is computed in, without its bias; None: nothing is left to add."""
    bias: Tensor | None = None
    """[C]: the branch's."""
    factors: Tensor | None = None
    """[N]: what each sample's branch is multiplied with; None for 1."""


class Attention(nn.Module):
    """Multi-head self-attention within each window, with a learned bias for each relative position.

    Args:
        features: C.
        heads: divide C.
        window: side of a window.
        shift: of the windows against the image's grid.
    """

    relative_position_index: Tensor

    def __init__(self, features: int, heads: int, window: int, shift: int) -> None:
        super().__init__()
        self.window, self.shift = window, shift
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        self.register_buffer("relative_position_index", relative_positions(window))
        self.qkv = nn.Linear(features, 3 * features)
        self.proj = nn.Linear(features, features)
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[N, h, w, C] to the same shape; `mask` is added to the scores, [windows of an image, T, T]."""
        return linear(self.proj, attend(linear(self.qkv, x), self._bias(), mask, self.window, self.shift))

    def attend_on_gpu(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """As `forward` up to its last product; by torch's attention where there is no kernel for such windows."""
        qkv, table = functional.linear(x, self.qkv.weight), self.relative_position_bias_table
        if takes_windows(qkv, table.shape[1], self.window):
            return window_attention(qkv, self.qkv.bias, table, self.window, self.shift)
        return attend_by_torch(qkv + self.qkv.bias.to(qkv.dtype), self._bias(), mask, self.window, self.shift)

    def _bias(self) -> Tensor:
        """Of the windows' pairs of tokens, [heads, T, T]."""
        return self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1).contiguous()


class Mlp(nn.Module):
    """Two linear layers with a GELU between them."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(features, hidden)
        self.fc2 = nn.Linear(hidden, features)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] to the same shape."""
        return linear(self.fc2, functional.gelu(linear(self.fc1, x)))


class SwinBlock(nn.Module):
    """Attention in windows and an MLP, each normalised first and added to its input.

    Args:
        features: C.
        heads: of the attention; divide C.
        window: side of a window.
        shift: by how much the windows are shifted against the image's grid, 0 or half a window.
        mlp_ratio: width of the MLP over C.
        patch: side of the images whose mask is kept.
    """

    attn_mask: Tensor | None

    def __init__(self, features: int, heads: int, window: int, shift: int, mlp_ratio: float, patch: int) -> None:
        super().__init__()
        self.shift = shift
        self.norm1 = nn.LayerNorm(features)
        self.attn = Attention(features, heads, window, shift)
        self.norm2 = nn.LayerNorm(features)
        self.mlp = Mlp(features, int(features * mlp_ratio))
        self.register_buffer("attn_mask", shift_mask(patch, patch, window, shift) if shift else None)

    def forward(self, x: Tensor, mask: Tensor | None, factors: Tensor | None) -> Tensor:
        """[N, h, w, C] to the same shape.

        Args:
            x: h and w are multiples of the window.
            mask: of the shifted windows, [windows of an image, T, T].
            factors: what each sample's two branches are multiplied with, [2, N, 1, 1, 1]; None for 1.
        """
        attended: Tensor = self.attn(self.norm1(x), mask)
        x = x + attended if factors is None else torch.addcmul(x, attended, factors[0])
        transformed: Tensor = self.mlp(self.norm2(x))
        return x + transformed if factors is None else torch.addcmul(x, transformed, factors[1])

    def carry_on(self, stream: Stream, mask: Tensor | None, factors: Tensor | None) -> Stream:
        """As `forward`, on a GPU: each product is left without its bias, which the pass behind it adds."""
        of_attention, of_mlp = (None, None) if factors is None else factors.flatten(1).unbind()
        attn, mlp = self.attn, self.mlp
        tokens, x = _add_and_normalise(stream, self.norm1)
        x = attn.attend_on_gpu(x, mask)
        stream = Stream(tokens, functional.linear(x, attn.proj.weight), attn.proj.bias, of_attention)
        tokens, x = _add_and_normalise(stream, self.norm2)
        x = bias_gelu(functional.linear(x, mlp.fc1.weight), mlp.fc1.bias)
        return Stream(tokens, functional.linear(x, mlp.fc2.weight), mlp.fc2.bias, of_mlp)


class SwinGroup(nn.Module):
    """Blocks whose windows are in turn on the grid and shifted."""

    def __init__(self, features: int, depth: int, heads: int, window: int, mlp_ratio: float, patch: int) -> None:
        super().__init__()
        shifts = (index % 2 * (window // 2) for index in range(depth))
        self.blocks = nn.ModuleList(SwinBlock(features, heads, window, shift, mlp_ratio, patch) for shift in shifts)

    def forward(self, x: Tensor, mask: Tensor | None, factors: Sequence[Tensor | None]) -> Tensor:
        """[N, h, w, C] to the same shape."""
        for block, factor in zip(self.blocks, factors, strict=True):
            x = block(x, mask if block.shift else None, factor)
        return x

    def carry_on(self, stream: Stream, mask: Tensor | None, factors: Sequence[Tensor | None]) -> Stream:
        """As `forward`, on a GPU."""
        for block, factor in zip(self.blocks, factors, strict=True):
            assert isinstance(block, SwinBlock)
            stream = block.carry_on(stream, mask if block.shift else None, factor)
        return stream


class Layer(RepeatedBlock):
    """x + conv(group(x)): the residual Swin transformer block."""

    def __init__(self, features: int, depth: int, heads: int, window: int, mlp_ratio: float, patch: int) -> None:
        super().__init__()
        self.residual_group = SwinGroup(features, depth, heads, window, mlp_ratio, patch)
        self.conv = conv3x3(features, features)

    def forward_block(self, x: Tensor, mask: Tensor | None, factors: Sequence[Tensor | None]) -> Tensor:
        """[N, h, w, C] to the same shape."""
        if x.is_cuda:
            return self.on_gpu(x, mask, factors)
        y: Tensor = self.conv(self.residual_group(x, mask, factors).permute(0, 3, 1, 2))
        return x + y.permute(0, 2, 3, 1)

    def on_gpu(self, x: Tensor, mask: Tensor | None, factors: Sequence[Tensor | None]) -> Tensor:
        """As `forward_block`, in as few passes over the stream as there can be."""
        stream = self.residual_group.carry_on(Stream(x), mask, factors)
        tokens, branch, bias, dropped = stream
        assert branch is not None, "there are blocks"
        assert bias is not None, "a branch has one"
        dtype = computed_in(x)
        y = residual_sum(tokens.permute(0, 3, 1, 2), branch.permute(0, 3, 1, 2), bias, dropped, dtype)
        return add_convolved(x.permute(0, 3, 1, 2), y, self.conv).permute(0, 2, 3, 1)


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device | None = None) -> Tensor:
    """0 for two tokens of a window of one part of the image, else `MASKED`: float32 [windows of an image, T, T]."""
    places = (torch.arange(size, device=device) - size for size in (height, width))
    rows, columns = ((place >= -window).long() + (place >= -shift) for place in places)
    region = cut((3 * rows[:, None] + columns)[None, :, :, None], window).flatten(1)
    return MASKED * (region[:, :, None] != region[:, None])


def _add_and_normalise(stream: Stream, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """The stream with its branch, and that normalised in what the next product computes in."""
    return add_norm(*stream, norm.weight, norm.bias, norm.eps, computed_in(stream.tokens))


def normalise(x: Tensor, norm: nn.Module, dtype: torch.dtype) -> Tensor:
    """The norm's output, [N, h, w, C]: in `dtype` at once on a GPU."""
    if x.is_cuda:
        assert isinstance(norm, nn.LayerNorm)
        return add_norm(x.contiguous(), None, None, None, norm.weight, norm.bias, norm.eps, dtype)[1]
    normalised: Tensor = norm(x)
    return normalised


def add_convolved(residual: Tensor, x: Tensor, convolution: nn.Conv2d) -> Tensor:
    """Residual + convolution(x), [N, C, h, w]; on a GPU bias and residual are one pass."""
    if x.is_cuda:
        filters, bias = weights_of(convolution, x)
        return residual_sum(residual, convolve(x.to(filters.dtype), filters), bias)
    convolved: Tensor = convolution(x)
    return convolved + residual
