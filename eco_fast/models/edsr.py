"""EDSR and EDSR-baseline (Lim et al., CVPRW 2017), with the state-dict keys of the authors' EDSR-PyTorch.

Images are float [N, 3, h, w] in 0..1 outside; inside, as the original, 0..255 with the DIV2K mean subtracted.
"""

import math
import re
from collections.abc import Mapping

import torch
from torch import Tensor, nn

RGB_MEAN = (0.4488, 0.4371, 0.4040)  # of DIV2K


class MeanShift(nn.Module):
    """Add `sign` times the DIV2K mean on the 0..255 scale.

    The original is a frozen 1x1 convolution with identity weights; the weight is kept for its files alone.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, sign: int) -> None:
        super().__init__()
        self.register_buffer("weight", torch.eye(3).view(3, 3, 1, 1))
        self.register_buffer("bias", sign * 255 * torch.tensor(RGB_MEAN))

    def forward(self, image: Tensor) -> Tensor:
        """[N, 3, H, W] to the same shape."""
        return image + self.bias.view(1, 3, 1, 1)


class ResidualBlock(nn.Module):
    """x + residual_scale * conv(relu(conv(x)))."""

    def __init__(self, features: int, residual_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(_conv(features, features), nn.ReLU(), _conv(features, features))
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] to the same shape."""
        residual: Tensor = self.body(x)
        return x + (residual if self.residual_scale == 1 else residual * self.residual_scale)


class EDSR(nn.Module):
    """EDSR; 16 blocks of 64 features are EDSR-baseline, 32 of 256 with residual scale 0.1 are EDSR.

    Args:
        scale: 2, 3, 4 or 8.
        features: channels of the body.
        blocks: residual blocks.
        residual_scale: factor on each residual branch.
    """

    memory_format = torch.channels_last  # what its convolutions are fastest in

    def __init__(self, scale: int, features: int = 64, blocks: int = 16, residual_scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        self.hyperparameters = {"features": features, "blocks": blocks, "residual_scale": residual_scale}
        self.sub_mean = MeanShift(-1)
        self.add_mean = MeanShift(1)
        self.head = nn.Sequential(_conv(3, features))
        body = [ResidualBlock(features, residual_scale) for _ in range(blocks)]
        self.body = nn.Sequential(*body, _conv(features, features))
        self.tail = nn.Sequential(_upsampler(scale, features), _conv(features, 3))

    @property
    def halo(self) -> int:
        """Radius of the receptive field in LR pixels: what an output pixel can see beyond its own place."""
        at_lr = 1 + 2 * (len(self.body) - 1) + 1
        doublings = 1 if self.scale == 3 else int(math.log2(self.scale))
        upsampler = sum(0.5**index for index in range(doublings))
        return math.ceil(at_lr + upsampler + 1 / self.scale)

    def forward(self, lr: Tensor) -> Tensor:
        """Float [N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1."""
        x = self.head(self.sub_mean(lr * 255))
        x = x + self.body(x)
        sr: Tensor = self.add_mean(self.tail(x))
        return sr / 255

    @classmethod
    def recognise(cls, state: Mapping[str, Tensor], residual_scale: float | None = None) -> "EDSR | None":
        """An EDSR of the sizes that a state dict's keys tell, or None if they are not EDSR's.

        The residual scale leaves no trace in the weights: 0.1 is taken for EDSR's 256 features, else 1.
        """
        blocks = len({key for key in state if re.fullmatch(r"body\.\d+\.body\.0\.weight", key)})
        ends = ("head.0.weight", "tail.0.0.weight", "tail.1.weight")
        if not blocks or any(key not in state or state[key].ndim != 4 for key in ends):
            return None
        features = state["head.0.weight"].shape[0]
        convolutions = len({key for key in state if re.fullmatch(r"tail\.0\.\d+\.weight", key)})
        scale = 3 if state["tail.0.0.weight"].shape[0] == 9 * features else 2**convolutions
        if residual_scale is None:
            residual_scale = 0.1 if features == 256 else 1.0
        return cls(scale, features, blocks, residual_scale)


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)


def _upsampler(scale: int, features: int) -> nn.Sequential:
    """Sub-pixel upsampling: one step of 3, or log2(scale) steps of 2; its convolutions are .0, .2, .4."""
    factors = [3] if scale == 3 else [2] * int(math.log2(scale))
    layers: list[nn.Module] = []
    for factor in factors:
        layers += [_conv(features, features * factor**2), nn.PixelShuffle(factor)]
    return nn.Sequential(*layers)
