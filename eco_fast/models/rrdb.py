"""RRDB, ESRGAN's generator (Wang et al., ECCVW 2018), with the state-dict keys of BasicSR's rrdbnet_arch.py.

Images are float [N, 3, h, w] in 0..1, inside too.
"""

import re
from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from eco_fast.models.network import Network, RepeatedBlock, conv3x3, reflect_pad, up_to_multiple, upsample_factors

RESIDUAL_SCALE = 0.2
SLOPE = 0.2
SHUFFLED = 2  # side of the squares that pixel_unshuffle makes channels of
SCALES = (2, 4, 8)


class DenseBlock(nn.Module):
    """x + 0.2 * conv5(...): five convolutions, of which each sees the outputs of all before it."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (
            conv3x3(features + index * growth, growth) for index in range(4)
        )
        self.conv5 = conv3x3(features + 4 * growth, features)

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] to the same shape."""
        known = x
        for conv in (self.conv1, self.conv2, self.conv3, self.conv4):
            known = torch.cat((known, functional.leaky_relu(conv(known), SLOPE)), 1)
        residual: Tensor = self.conv5(known)
        return x + RESIDUAL_SCALE * residual


class ResidualInResidual(RepeatedBlock):
    """x + 0.2 * three dense blocks: the residual-in-residual dense block."""

    def __init__(self, features: int, growth: int) -> None:
        super().__init__()
        self.rdb1, self.rdb2, self.rdb3 = (DenseBlock(features, growth) for _ in range(3))

    def forward_block(self, x: Tensor) -> Tensor:
        """[N, features, h, w] to the same shape."""
        residual: Tensor = self.rdb3(self.rdb2(self.rdb1(x)))
        return x + RESIDUAL_SCALE * residual


class RRDB(Network):
    """RRDB; the published one has 23 blocks of 64 features.

    Args:
        scale: 2, 4 or 8.
        features: channels of the body.
        blocks: residual-in-residual dense blocks.
        growth: channels that each convolution of a dense block adds.
        unshuffle: take squares of 2x2 pixels as channels, and upscale once more: BasicSR's form of x2.

    Raises:
        ValueError: another scale.
    """

    architecture = "rrdb"
    scale_dependent_keys = ("conv_up",)
    body_layers = r"body\.|conv_body"
    repeated_block = ResidualInResidual

    def __init__(
        self, scale: int, features: int = 64, blocks: int = 23, growth: int = 32, *, unshuffle: bool = False
    ) -> None:
        if scale not in SCALES:
            raise ValueError(f"RRDB has scales {SCALES}, got {scale}")
        super().__init__(scale, features=features, blocks=blocks, growth=growth, unshuffle=unshuffle)
        self.grid = SHUFFLED if unshuffle else 1
        self.conv_first = conv3x3(3 * self.grid**2, features)
        self.body = nn.Sequential(*(ResidualInResidual(features, growth) for _ in range(blocks)))
        self.conv_body = conv3x3(features, features)
        self.upsample_factors = upsample_factors(scale * self.grid)
        for index in range(len(self.upsample_factors)):
            self.add_module(f"conv_up{index + 1}", conv3x3(features, features))
        self.conv_hr = conv3x3(features, features)
        self.conv_last = conv3x3(features, 3)

    @property
    def halo(self) -> int:
        """The 350 convolutions see nearly everything, but each block adds but a 25th of what it finds further out.

        Real-ESRGAN's own tiles have an overlap of 10.
        """
        return 32

    def forward(self, lr: Tensor) -> Tensor:
        """Float [N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1. Any h and w."""
        height, width = lr.shape[2:]
        lr = reflect_pad(lr, *(up_to_multiple(size, self.grid) for size in (height, width)))
        x = self.conv_first(functional.pixel_unshuffle(lr, self.grid))
        x = x + self.conv_body(self.body(x))
        for index, factor in enumerate(self.upsample_factors):
            larger = functional.interpolate(x, scale_factor=factor, mode="nearest")
            x = functional.leaky_relu(self.get_submodule(f"conv_up{index + 1}")(larger), SLOPE)
        sr: Tensor = self.conv_last(functional.leaky_relu(self.conv_hr(x), SLOPE))
        return sr[:, :, : self.scale * height, : self.scale * width]

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self | None:  # noqa: ARG003
        """See `Network.from_state_dict`."""
        wanted = ("conv_first.weight", "body.0.rdb1.conv1.weight", "conv_up1.weight", "conv_last.weight")
        if any(key not in state or state[key].ndim != 4 for key in wanted):
            return None
        features, inputs = state["conv_first.weight"].shape[:2]
        blocks = len({key for key in state if re.fullmatch(r"body\.\d+\.rdb1\.conv1\.weight", key)})
        ups = len({key for key in state if re.fullmatch(r"conv_up\d\.weight", key)})
        unshuffle = inputs == 3 * SHUFFLED**2
        scale = 2**ups // (SHUFFLED if unshuffle else 1)
        if scale not in SCALES or inputs not in (3, 3 * SHUFFLED**2):
            return None
        return cls(scale, features, blocks, state["body.0.rdb1.conv1.weight"].shape[0], unshuffle=unshuffle)
