"""What a GPU's convolutions take along."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional

SHAPE = (2, 64, 9, 11)  # of the images that convolutions are tried on: odd sizes, as validation has them
Convolution = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of images, weights [C, C, 3, 3] and a bias [C]; it keeps the images' size."""


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def convolution_fuses_relu(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether `torch.ops.aten.cudnn_convolution_relu` works on this machine; tried at the first question.

    It depends on the GPU, on cuDNN and on the dtype, and no table says where it is right. Where a GPU lacks it, that is
    said in one sentence. On a CPU it is absent.
    """
    return device.type == "cuda" and _works(device, dtype)


@cache
def _works(device: torch.device, dtype: torch.dtype) -> bool:
    with ThreadPoolExecutor(
        1
    ) as apart:  # the first question comes while a network is traced: on tensors without values
        fault = apart.submit(fault_of, cudnn_convolution_relu, device, dtype).result()
    if fault is not None:
        print(f"convolutions here do not take a ReLU along ({fault}): one pass more each", flush=True)
    return fault is None


def cudnn_convolution_relu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """relu(convolution + bias) in one pass: 3x3, one pixel of padding."""
    made: Tensor = torch.ops.aten.cudnn_convolution_relu(x, weight, bias, (1, 1), (1, 1), (1, 1), 1)
    return made


@torch.no_grad()
def fault_of(convolution_relu: Convolution, device: torch.device, dtype: torch.dtype) -> str | None:
    """What is wrong with a way to compute relu(convolution + bias): an error's first line, or its deviation; or None.

    It may deviate from float32 by twice as much as the usual way in `dtype` does. Its output's memory is likely to hold
    NaN before, so that values which it leaves out show.
    """
    generator = torch.Generator().manual_seed(0)  # the CPU's: no state of the run is touched
    channels = SHAPE[1]
    shapes = SHAPE, (channels, channels, 3, 3), (channels,)
    x, weight, bias = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    weight /= 3 * channels**0.5  # so that the output is about as large as the input
    with torch.autocast(device.type, enabled=False):
        true = functional.conv2d(x.float(), weight.float(), bias.float(), padding=1).relu()
        x, weight = (one.to(device, memory_format=torch.channels_last) for one in (x, weight))
        bias = bias.to(device)
        try:
            usual = functional.conv2d(x, weight, bias, padding=1).relu()
            poison = torch.full_like(usual, float("nan"))
            del poison  # back to the allocator, which hands out the same block for the same size
            made = convolution_relu(x, weight, bias)
            error, of_usual = (float((one.float().cpu() - true).abs().max()) for one in (made, usual))
        except RuntimeError as reason:
            return str(reason).partition("\n")[0]
    # Both may be wrong alike, on a GPU that computes nothing: a few roundings of the largest value, in TF32 at best.
    most = 4 * max(torch.finfo(dtype).eps, 2**-10) * float(true.max())
    return None if error <= min(2 * of_usual, most) else f"its result is wrong by {error:.2g}"
