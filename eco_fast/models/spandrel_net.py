"""Networks of other people's architectures, through spandrel, which knows some forty from their weights alone.

They are teachers and can be scored and applied; eco-fast does not train them.
"""

import warnings
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from eco_fast.models.network import Network, reflect_pad

TRIAL_SIDE = 64  # LR pixels a side of a first image: what every network accepts
MAX_BICUBIC_DISTANCE = 0.1  # of the range 0..1: trained networks stay within 0.02 of bicubic on a smooth image


class Foreign(Network):
    """A frozen network as spandrel describes it.

    Args:
        descriptor: spandrel's ImageModelDescriptor.
        peak: white, as the network has it: 1 or 255.
    """

    architecture = "foreign"
    scale_dependent_keys = ()
    compiled_on = ()

    def __init__(self, descriptor: Any, peak: int = 1) -> None:
        super().__init__(descriptor.scale)
        self.descriptor, self.peak = descriptor, peak
        self.model: torch.nn.Module = descriptor.model
        self.grid = descriptor.size_requirements.multiple_of

    @property
    def halo(self) -> int:
        """How far these networks see is not known, and attention sees everything: tiles are not exact.

        The overlap that many of their authors' tiled tests take. DAT-light's tiles of 64 differ from whole images of
        Set5 by 0.13 grey levels on average and 5 at most, with a PSNR that is the same within 0.02 dB.
        """
        return 32

    def forward(self, lr: Tensor) -> Tensor:
        """Float [N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1. Any h and w."""
        return torch.cat([self._one(image) for image in torch.split(lr, 1)])  # spandrel speaks of single images

    def _one(self, lr: Tensor) -> Tensor:
        height, width = lr.shape[2:]
        more_width, more_height = self.descriptor.size_requirements.get_padding(width, height)
        padded = reflect_pad(lr, height + more_height, width + more_width).contiguous()
        sr: Tensor = self.descriptor._call_fn(self.model, padded * self.peak) / self.peak  # noqa: SLF001 - without bounds
        return sr[:, :, : self.scale * height, : self.scale * width]

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self | None:  # noqa: ARG003
        """See `Network.from_state_dict`; the facts are in the weights.

        Raises:
            ValueError: a network, but none that upscales colour images, or one that has learnt nothing.
        """
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "torch.meshgrid")  # of code that is not ours
                descriptor = spandrel().ModelLoader().load_from_state_dict(dict(state))
        except spandrel().UnsupportedModelError:
            return None
        name = descriptor.architecture.name
        if descriptor.scale == 1 or (descriptor.input_channels, descriptor.output_channels) != (3, 3):
            raise ValueError(
                f"a {name} network from {descriptor.input_channels} to {descriptor.output_channels} channels at "
                f"x{descriptor.scale}; expected one that upscales colour images"
            )
        for peak in (1, 255):
            network = cls(descriptor, peak).eval().requires_grad_(requires_grad=False)
            if (distance := from_bicubic(network)) < MAX_BICUBIC_DISTANCE:
                return network
        raise ValueError(
            f"a {name} network whose output is {distance:.2g} from bicubic upscaling on a smooth image of 0..1; "
            "expected a trained one that takes images of 0..1 or 0..255"
        )


def spandrel() -> ModuleType:
    """The library, also where torchvision has been built for another torch: its two missing operators get a name.

    Raises:
        ImportError: it is not installed.
    """
    try:
        import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::nms does not exist" not in str(error):
            raise
        _name_operators()
    return import_module("spandrel")


@cache
def _name_operators() -> torch.library.Library:
    """Declare what torchvision looks for when it is imported; the declarations live as long as their library does."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for name in ("nms", "qnms"):
        library.define(  # type: ignore[no-untyped-call]
            f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
    return library


def installed() -> bool:
    """Whether spandrel is there."""
    try:
        spandrel()
    except ImportError:
        return False
    return True


@torch.inference_mode()
def from_bicubic(network: Network) -> float:
    """Mean absolute difference between the output and bicubic upscaling on a smooth image, in parts of white."""
    place = torch.linspace(0, 3, TRIAL_SIDE)
    waves = [torch.sin(place[:, None] * (1 + colour) + place * (2 - colour)) for colour in range(3)]
    lr = (0.5 + 0.4 * torch.stack(waves))[None]
    bicubic = functional.interpolate(lr, scale_factor=network.scale, mode="bicubic")
    return float((network(lr) - bicubic).abs().mean().item())
