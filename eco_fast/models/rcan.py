"""RCAN (Zhang et al., ECCV 2018), with the state-dict keys of the authors' code.

Images are float [N, 3, h, w] in 0..1 outside; inside, as the original, 0..255 with the DIV2K mean subtracted.
"""

import re
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn
from torch.nn import functional

from eco_fast.models.attention_chain import attention_chain
from eco_fast.models.network import MeanShift, Network, RepeatedBlock, conv3x3, scale_of, sub_pixel_upsampler


class ChannelAttention(nn.Module):
    """Each channel times a weight in 0..1, which a small network finds from the channels' means.

    The original's 1x1 convolutions of one pixel are matrix products here; their weights keep the shape of its files.
    """

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        squeezed = features // reduction
        self.conv_du = nn.Sequential(
            nn.Conv2d(features, squeezed, 1), nn.ReLU(), nn.Conv2d(squeezed, features, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] to the same shape."""
        hidden = _product(x.mean((2, 3)), self.conv_du[0]).relu()
        weights = _product(hidden, self.conv_du[2]).sigmoid()
        return x * weights[:, :, None, None]


class AttentionBlock(nn.Module):
    """x + attention(conv(relu(conv(x)))): the residual channel attention block."""

    def __init__(self, features: int, reduction: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv3x3(features, features), nn.ReLU(), conv3x3(features, features), ChannelAttention(features, reduction)
        )

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] to the same shape."""
        residual: Tensor = self.body(x)
        return x + residual


class ResidualGroup(RepeatedBlock):
    """x + conv(blocks(x)): the residual group."""

    def __init__(self, features: int, blocks: int, reduction: int) -> None:
        super().__init__()
        body = [AttentionBlock(features, reduction) for _ in range(blocks)]
        self.body = nn.Sequential(*body, conv3x3(features, features))

    def forward_block(self, x: Tensor) -> Tensor:
        """[N, features, h, w] to the same shape."""
        if x.is_cuda:
            return attention_chain(x, self.body)
        residual: Tensor = self.body(x)
        return x + residual


class RCAN(Network):
    """RCAN; the published one has 10 groups of 20 blocks with 64 features.

    Args:
        scale: 2, 3, 4 or 8.
        features: channels of the body.
        groups: residual groups.
        blocks: attention blocks in each.
        reduction: the channel attention's hidden layer is so many times smaller than `features`.
    """

    architecture = "rcan"
    scale_dependent_keys = ("tail.",)
    compiled_for_images = False
    body_layers = r"body\.(?!.*conv_du)"  # not the attention's tiny products
    tile = 1536  # of tiles each would have means of its own: images of DIV2K are taken whole, in some 2 GB
    repeated_block = ResidualGroup

    def __init__(self, scale: int, features: int = 64, groups: int = 10, blocks: int = 20, reduction: int = 16) -> None:
        super().__init__(scale, features=features, groups=groups, blocks=blocks, reduction=reduction)
        self.sub_mean = MeanShift(-1)
        self.add_mean = MeanShift(1)
        self.head = nn.Sequential(conv3x3(3, features))
        body = [ResidualGroup(features, blocks, reduction) for _ in range(groups)]
        self.body = nn.Sequential(*body, conv3x3(features, features))
        self.tail = nn.Sequential(sub_pixel_upsampler(scale, features), conv3x3(features, 3))

    @property
    def halo(self) -> int:
        """The channel means see the whole image, so no halo makes tiles exact; the convolutions see this far at most.

        RCAN's own test code cuts images with an overlap of 10; the influence of a pixel fades long before the
        radius of 400 convolutions.
        """
        return 32

    def forward(self, lr: Tensor) -> Tensor:
        """Float [N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1."""
        x = self.head(self.sub_mean(lr * 255))
        x = x + self.body(x)
        sr: Tensor = self.add_mean(self.tail(x))
        return sr / 255

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self | None:  # noqa: ARG003
        """See `Network.from_state_dict`."""
        first = "body.0.body.0.body.3.conv_du.0.weight"
        ends = ("head.0.weight", "tail.0.0.weight", "tail.1.weight")
        if any(key not in state or state[key].ndim != 4 for key in (first, *ends)):
            return None
        features, squeezed = state["head.0.weight"].shape[0], state[first].shape[0]
        every = [re.match(r"body\.(\d+)\.body\.(\d+)\.body\.0\.weight", key) for key in state]
        places = [(int(one[1]), int(one[2])) for one in every if one]
        groups, blocks = (1 + max(place) for place in zip(*places, strict=True))
        return cls(scale_of(state, "tail.0.", features), features, groups, blocks, features // squeezed)


def _product(x: Tensor, one_by_one: Any) -> Tensor:
    return functional.linear(x, one_by_one.weight.flatten(1), one_by_one.bias)
