"""A network of one's own: bicubic upscaling, and what a few convolutions add to it.

`halo` says how far an output pixel sees: as many LR pixels as there are 3x3 convolutions, and bicubic's two.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn

from eco_fast import Network


class ResidualNet(Network):
    """3x3 convolutions of `features` channels, `layers` of them, before sub-pixel upsampling."""

    scale_dependent_keys = ("last.",)  # an x3 run may start from an x2 checkpoint but for these weights

    def __init__(self, scale: int, features: int = 32, layers: int = 4) -> None:
        super().__init__(scale)
        widths = [3, *[features] * (layers - 1)]
        self.body = nn.ModuleList(nn.Conv2d(inputs, outputs, 3, padding=1) for inputs, outputs in pairwise(widths))
        self.last = nn.Conv2d(features, 3 * scale**2, 3, padding=1)

    @property
    def halo(self) -> int:
        """LR pixels that an output pixel sees beyond its own place."""
        return max(len(self.body) + 1, 2)

    def forward(self, lr: Tensor) -> Tensor:
        """Float [N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1."""
        x = lr
        for convolution in self.body:
            x = torch.relu(convolution(x))
        residual = nn.functional.pixel_shuffle(self.last(x), self.scale)
        return residual + nn.functional.interpolate(lr, scale_factor=self.scale, mode="bicubic")
