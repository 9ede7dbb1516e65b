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


def window_attention(element_size: int) -> int:
    """Bytes per output value, with the gradients: qkv twice and the output's gradient in, output and gradient out."""
    return element_size * (3 + 1 + 3 + 1 + 3)


def decide_step() -> int:
    """Bytes per weight: the gradient in."""
    return 4


def muon_step(*, average: bool = False) -> int:
    """Bytes per weight of a matrix: weight, gradient and momentum in, all but the gradient out; the average too."""
    return 4 * (5 + 2 * average)


def lamb_step(*, average: bool = False) -> int:
    """Bytes per weight: parameter, gradient and two moments in, all but the gradient out; the average in and out."""
    return 4 * (7 + 2 * average)


def add_norm(stream: int, branch: int, *, of_gradient: bool = False) -> int:
    """Bytes per value, with element sizes of the stream and of branch and normalised values.

    Stream and branch in, total and normalised values out; the gradients of total and normalised values and the total
    in, those of stream and branch out.
    """
    return (3 if of_gradient else 2) * stream + 2 * branch


def bias_gelu(element_size: int, *, of_gradient: bool = False) -> int:
    """Bytes per value: x in, y out; the gradient of y and x in, that of x out."""
    return (3 if of_gradient else 2) * element_size


def bias_relu(element_size: int) -> int:
    """Bytes per value of an image: x in, its ReLU out. Neither here nor below do biases, sums and weights count."""
    return 2 * element_size


def add_residual(element_size: int) -> int:
    """Bytes per value: residual and x in, their sum out."""
    return 3 * element_size


def relu_gradient(element_size: int) -> int:
    """Bytes per value: upstream gradient and activation in, the gradient out."""
    return 3 * element_size


def merge_gradients(element_size: int, *, second: bool = True, scaled: bool = True) -> int:
    """Bytes per value: first in, second in and the total out, the branch's gradient out where it is another."""
    return element_size * (1 + 2 * second + scaled)


def channel_sums(element_size: int) -> int:
    """Bytes per value: x in."""
    return element_size


def attend_channels(element_size: int) -> int:
    """Bytes per value: x and residual in, their sum out."""
    return 3 * element_size


def attention_sums(element_size: int, *, second: bool = True) -> int:
    """Bytes per value: first and x in, second in and the total out."""
    return element_size * (2 + 2 * second)


def attention_gradient(element_size: int) -> int:
    """Bytes per value: upstream gradient in, the gradient out."""
    return 2 * element_size
