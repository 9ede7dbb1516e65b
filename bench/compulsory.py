"""Compulsory bytes of each op: every array of its contract read or written once, whatever the implementation does.

Scalars, flags and one alpha per sample are not counted. `images` is 2, or 1 where hr or sr is absent.
"""

from eco_fast_kernels import crop_side, margin_of
from eco_fast_kernels.crops import padded_row


def cut_crops(scale: int, patch: int) -> float:
    """Bytes per value of a crop: the image's in, the padded rows out."""
    side = crop_side(scale, patch)
    _, pitch = padded_row(side, margin_of(scale))
    return 1 + pitch / (3 * side)


def downsample_blend(scale: int, patch: int, element_size: int, images: int = 2) -> float:
    """Bytes per output value: the crops in, the blended LR image of `element_size` out."""
    return images * (crop_side(scale, patch) / patch) ** 2 + element_size


def blended_loss(element_size: int, images: int = 2) -> int:
    """Bytes per predicted value: the targets and the prediction of `element_size` in, its gradient out."""
    return images + 2 * element_size


def decide_step() -> int:
    """Bytes per weight: the gradient in."""
    return 4


def lamb_step(*, average: bool = False) -> int:
    """Bytes per weight: parameter, gradient and two moments in, all but the gradient out; the average in and out."""
    return 4 * (7 + 2 * average)
