"""The plain form of a network: the same function in modules that every converter knows, for images of any size.

No operator of our own, no C++, no memory format, no branch on a size: tracing it once gives a graph with dynamic N, H
and W. The weights are copies, so the network itself stays as it is.

In 16 bits the graph holds the casts itself, and the first convolution, which reads the image, stays in float32:
rounding the image would lose more than all else. Then

fp16  everything up to the last convolution has float16 weights and values.
bf16  convolutions and matrix products round their factors and results to bfloat16; sums, norms and the last convolution
      are float32. Its 8 bits would lose a grey level in the sums along a deep network's skip connections.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from eco_fast.models import Network
from eco_fast.models.cpu.window_attention import cut, join
from eco_fast.models.network import SubPixelConvolution
from eco_fast.models.rcan import ChannelAttention
from eco_fast.models.swin_blocks import Attention, Mlp

SMALLEST_TRACED = 8  # pixels a side


class PlainNetwork(nn.Module):
    """A network's plain form, in evaluation mode and frozen, on the CPU.

    Args:
        network: of this library's architectures, or of one's own; it is copied.
        precision: "fp32", "fp16" or "bf16", as the module says.
        io: dtype of its input and output.
    """

    def __init__(self, network: Network, precision: str = "fp32", io: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.scale, self.grid, self.io = network.scale, network.grid, io
        self.network = _plain(copy.deepcopy(network).cpu().float().eval().requires_grad_(requires_grad=False))
        if precision == "fp16":
            _to_half(self.network)
        elif precision == "bf16":
            _products_in_bfloat16(self.network)

    def forward(self, lr: Tensor) -> Tensor:
        """[N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1, in the dtype `io`. Any h and w."""
        height, width = lr.shape[2:]
        image = lr.float()
        if self.grid > 1:
            image = _pad(_pad(image, 2, self.grid), 3, self.grid)
        sr: Tensor = self.network(image)
        if self.grid > 1:
            sr = sr[:, :, : self.scale * height, : self.scale * width]
        return sr.to(self.io)

    def example(self) -> Tensor:
        """An input to trace it with: on the grid, and no square, which a training patch is."""
        side = -(-SMALLEST_TRACED // self.grid) * self.grid
        return torch.rand(1, 3, side, side + self.grid, generator=torch.Generator().manual_seed(0)).to(self.io)


class PlainAttention(nn.Module):
    """`Attention` by matrix products and a softmax: scores in the dtype of the tokens, factors in `products`."""

    bias: Tensor

    def __init__(self, attention: Attention) -> None:
        super().__init__()
        table, index = attention.relative_position_bias_table, attention.relative_position_index
        self.bias = nn.Parameter(table[index].permute(2, 0, 1).contiguous(), requires_grad=False)  # [heads, T, T]
        self.qkv, self.proj = attention.qkv, attention.proj
        self.window, self.shift = attention.window, attention.shift
        self.products: torch.dtype | None = None

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """As `Attention.forward`."""
        images, height, width, channels = x.shape
        heads, tokens = self.bias.shape[:2]
        if self.shift:
            x = x.roll((-self.shift, -self.shift), (1, 2))
        windows = cut(x, self.window).reshape(-1, tokens, channels)
        parts = self.qkv(windows).reshape(-1, tokens, 3, heads, channels // heads).permute(2, 0, 3, 1, 4)
        scores = self._product(parts[0] * (channels // heads) ** -0.5, parts[1].transpose(2, 3)) + self.bias
        if mask is not None:
            of_images = scores.reshape(images, -1, heads, tokens, tokens) + mask[:, None].to(scores.dtype)
            scores = of_images.reshape(-1, heads, tokens, tokens)
        attended = self._product(scores.softmax(3), parts[2]).transpose(1, 2)
        joined = join(
            self.proj(attended.reshape(-1, tokens, channels)).reshape(-1, self.window, self.window, channels),
            (images, height, width, channels),
        )
        return joined.roll((self.shift, self.shift), (1, 2)) if self.shift else joined

    def _product(self, left: Tensor, right: Tensor) -> Tensor:
        return (left.to(self.products) @ right.to(self.products)).to(left.dtype) if self.products else left @ right


class PlainChannelAttention(nn.Module):
    """`ChannelAttention` by the authors' layers; the means over an image, which 16 bits cannot hold, are float32."""

    def __init__(self, attention: ChannelAttention) -> None:
        super().__init__()
        self.conv_du = attention.conv_du

    def forward(self, x: Tensor) -> Tensor:
        """As `ChannelAttention.forward`."""
        weights: Tensor = self.conv_du(functional.adaptive_avg_pool2d(x.float(), 1).to(x.dtype))
        return x * weights


class Cast(nn.Module):
    """To another dtype."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        return x.to(self.dtype)


def _plain(network: Network) -> nn.Module:
    forms: dict[type[nn.Module], Callable[[Any], nn.Module]] = {
        SubPixelConvolution: _convolution_and_shuffle,
        ChannelAttention: PlainChannelAttention,
        Attention: PlainAttention,
        Mlp: lambda mlp: nn.Sequential(mlp.fc1, nn.GELU(), mlp.fc2),
    }
    return _replace(network, {old: forms[type(old)](old) for old in network.modules() if type(old) in forms})


def _replace(network: nn.Module, new: Mapping[nn.Module, nn.Module]) -> nn.Module:
    """Put new modules in the places of old ones, which may lie within the new."""
    for module in list(network.modules()):
        for name, child in module.named_children():
            if child in new:
                module.register_module(name, new[child])
    return network


def _convolution_and_shuffle(convolution: SubPixelConvolution) -> nn.Module:
    plain = nn.Conv2d(convolution.in_channels, convolution.out_channels, 3, padding=1)
    plain.weight, plain.bias = convolution.weight, convolution.bias
    return nn.Sequential(plain, nn.PixelShuffle(convolution.factor))


def _ends(network: nn.Module) -> tuple[nn.Module, nn.Module]:
    """The first and the last convolution."""
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    if len(convolutions) < 2:
        raise ValueError("16 bits need a network that begins and ends with a convolution; this one has none")
    return convolutions[0], convolutions[-1]


def _to_half(network: nn.Module) -> None:
    first, last = _ends(network)
    kept = set(first.parameters())
    for weight in network.parameters():
        if weight not in kept:
            weight.data = weight.data.half()
    _replace(
        network, {first: nn.Sequential(first, Cast(torch.float16)), last: nn.Sequential(last, Cast(torch.float32))}
    )


def _products_in_bfloat16(network: nn.Module) -> None:
    layers = [one for one in network.modules() if isinstance(one, nn.Conv2d | nn.Linear) and one not in _ends(network)]
    for attention in network.modules():
        if isinstance(attention, PlainAttention):
            attention.products = torch.bfloat16
    _replace(
        network,
        {layer: nn.Sequential(Cast(torch.bfloat16), layer.bfloat16(), Cast(torch.float32)) for layer in layers},
    )


def _pad(image: Tensor, dim: int, multiple: int) -> Tensor:
    """`reflect_pad` to a multiple, in operators that depend on no size: also where the image is smaller than it."""
    size = image.shape[dim]
    period = 2 * size - 2 + 1 // size  # 1 for a single pixel
    place = torch.arange((size + multiple - 1) // multiple * multiple, device=image.device) % period
    return image.index_select(dim, torch.minimum(place, period - place))
