"""What a device can do at best: copies, and the passes of a convolution in any precision and layout."""

import torch
from torch import Tensor

from eco_fast.training.profiling import Work

PATCH_SIDE = 48  # pixels of an LR patch of the recipes


def copying(size: int, device: str) -> Work:
    """A copy of so many bytes: it reads and writes each."""
    source, target = (torch.zeros(size, dtype=torch.uint8, device=device) for _ in range(2))
    return lambda: target.copy_(source)


def convolution_flops(inputs: int, outputs: int, batch: int) -> int:
    """Of each of `convolution_parts`."""
    return 2 * 9 * inputs * outputs * batch * PATCH_SIDE**2


def convolution_parts(
    inputs: int,
    outputs: int,
    batch: int,
    device: str,
    dtype: torch.dtype,
    layout: torch.memory_format = torch.channels_last,
) -> dict[str, Work]:
    """The forward pass of a 3x3 convolution on 48x48 pixels, and the halves of its backward pass.

    Args:
        inputs: channels.
        outputs: channels.
        batch: images.
        device: where it runs.
        dtype: of everything.
        layout: of everything.
    """

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype).contiguous(memory_format=layout)

    image, weight = random(batch, inputs, PATCH_SIDE, PATCH_SIDE), random(outputs, inputs, 3, 3)
    upstream = random(batch, outputs, PATCH_SIDE, PATCH_SIDE)

    def backward(*mask: bool) -> Work:
        shape = ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)
        return lambda: torch.ops.aten.convolution_backward(upstream, image, weight, None, *shape, mask)

    return {
        "fprop": lambda: torch.conv2d(image, weight, padding=1),
        "dgrad": backward(True, False, False),
        "wgrad": backward(False, True, False),
    }
