"""Whether a network does super-resolution at all: its output, downsampled again, is the image that it was given."""

from eco_fast_kernels import Rounding, imresize

from eco_fast.data.images import Pixels
from eco_fast.data.resize import modcrop, to_tensor
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.models import Network

CENTRE_SIDE = 64  # LR pixels a side of the part that is looked at
MAX_INCONSISTENCY = 3.0
"""Grey levels. Over Set5 and Set14 a trained DAT-light stays below 0.3 (x2) and 0.9 (x4), at any amount of detail.

The same network with images in the wrong range (0..1 for 0..255) begins at 4.0.
"""


def inconsistency(network: Network, hr: Pixels, rounding: Rounding) -> float:
    """Mean absolute difference between LR and D(network(LR)) in grey levels, over the middle of one HR image.

    Raises:
        ValueError: the image is smaller than the scale.
    """
    side = CENTRE_SIDE * network.scale
    top, left = (max(size - side, 0) // 2 for size in hr.shape[:2])
    middle = modcrop(hr[top : top + side, left : left + side], network.scale)
    device = next(network.parameters()).device
    lr = imresize(to_tensor(middle, device)[None], network.scale, rounding)
    again = imresize(upscale_tiled(network, lr[0])[None], network.scale, rounding)
    return (again.double() - lr.double()).abs().mean().item()
