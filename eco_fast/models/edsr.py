"""EDSR and EDSR-baseline (Lim et al., CVPRW 2017), with the state-dict keys of the authors' EDSR-PyTorch.

Images are float [N, 3, h, w] in 0..1 outside; inside, as the original, 0..255 with the DIV2K mean subtracted.
"""

import math
import re
from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor, nn

from eco_fast.models.network import MeanShift, Network, conv3x3, scale_of, sub_pixel_upsampler, upsample_factors
from eco_fast.models.residual_chain import residual_chain


class ResidualBlock(nn.Module):
    """x + residual_scale * conv(relu(conv(x)))."""

    def __init__(self, features: int, residual_scale: float) -> None:
        super().__init__()
        self.body = nn.Sequential(conv3x3(features, features), nn.ReLU(), conv3x3(features, features))
        self.residual_scale = residual_scale

    def forward(self, x: Tensor) -> Tensor:
        """[N, features, h, w] to the same shape."""
        residual: Tensor = self.body(x)
        return x + (residual if self.residual_scale == 1 else residual * self.residual_scale)


class EDSR(Network):
    """EDSR; 16 blocks of 64 features are EDSR-baseline, 32 of 256 with residual scale 0.1 are EDSR.

    Args:
        scale: 2, 3, 4 or 8.
        features: channels of the body.
        blocks: residual blocks.
        residual_scale: factor on each residual branch.
    """

    architecture = "edsr"
    scale_dependent_keys = ("tail.",)
    compiled_for_images = False
    body_layers = r"body\."

    def __init__(self, scale: int, features: int = 64, blocks: int = 16, residual_scale: float = 1.0) -> None:
        super().__init__(scale, features=features, blocks=blocks, residual_scale=residual_scale)
        self.sub_mean = MeanShift(-1)
        self.add_mean = MeanShift(1)
        self.head = nn.Sequential(conv3x3(3, features))
        body = [ResidualBlock(features, residual_scale) for _ in range(blocks)]
        self.body = nn.Sequential(*body, conv3x3(features, features))
        self.tail = nn.Sequential(sub_pixel_upsampler(scale, features), conv3x3(features, 3))

    @property
    def halo(self) -> int:
        """Radius of the receptive field in LR pixels: what an output pixel can see beyond its own place."""
        at_lr = 1 + 2 * (len(self.body) - 1) + 1
        in_upsampler = sum(0.5**index for index in range(len(upsample_factors(self.scale))))
        return math.ceil(at_lr + in_upsampler + 1 / self.scale)

    def forward(self, lr: Tensor) -> Tensor:
        """Float [N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1."""
        x = self.head(self.sub_mean(lr * 255))
        x = residual_chain(x, self.body, self.hyperparameters["residual_scale"]) if x.is_cuda else x + self.body(x)
        sr: Tensor = self.add_mean(self.tail(x))
        return sr / 255

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self | None:
        """See `Network.from_state_dict`.

        The residual scale leaves no trace in the weights: see `usual_residual_scale`.
        """
        blocks = len({key for key in state if re.fullmatch(r"body\.\d+\.body\.0\.weight", key)})
        ends = ("head.0.weight", "tail.0.0.weight", "tail.1.weight")
        if not blocks or any(key not in state or state[key].ndim != 4 for key in ends):
            return None
        features = state["head.0.weight"].shape[0]
        residual_scale = facts.get("residual_scale", usual_residual_scale(features))
        return cls(scale_of(state, "tail.0.", features), features, blocks, residual_scale)


def usual_residual_scale(features: int) -> float:
    """What everybody takes where a file does not say it: the authors' 0.1 for EDSR's 256 features, else 1."""
    return 0.1 if features == 256 else 1.0


def as_others_read_it(network: Network) -> Network:
    """An equal network whose weights alone say how to build it: an unusual residual scale goes into them."""
    if not isinstance(network, EDSR):
        return network
    features, actual = network.hyperparameters["features"], network.hyperparameters["residual_scale"]
    usual = usual_residual_scale(features)
    if actual == usual:
        return network
    state = {
        key: value * (actual / usual) if ".body.2." in key else value for key, value in network.state_dict().items()
    }
    equal = EDSR(network.scale, features, network.hyperparameters["blocks"], usual)
    equal.load_state_dict(state)
    return equal.eval().requires_grad_(requires_grad=False).to(next(network.parameters()).device)
