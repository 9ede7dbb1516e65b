"""What a network needs around it to run over whole images: torch's switches, and tiles as large as the memory takes."""

import math
import weakref
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from eco_fast.models import Network

PROBE = 64  # LR pixels a side of the image that a network's appetite is measured with
SMALLEST = 64  # LR pixels a side of a tile
SHARE = 0.5  # of a GPU's free memory that its tensors may take; cuDNN's workspaces and fragments have the rest
MOST_VALUES = 2**31 - 1  # of a tensor in cuDNN


@contextmanager
def whole_images(*, tf32: bool = False) -> Iterator[None]:
    """Set torch's process-wide switches for images of many sizes, and set them back.

    cuDNN does not search for the fastest algorithm, which every new size would pay for, and float32 is float32.

    Args:
        tf32: let a GPU round the factors of float32 products to 10 bits, which is several times as fast.
    """
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32
    cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = False, tf32, tf32
    try:
        yield
    finally:
        cudnn.benchmark, cudnn.allow_tf32, matmul.allow_tf32 = before


def ready(network: Network) -> Network:
    """The network in evaluation mode; on a GPU in its memory format, to which cuDNN would convert it at every call."""
    if next(network.parameters()).device.type == "cuda":
        use_memory_format(network)
    return network.eval()


def use_memory_format(network: Network) -> None:
    """Bring the weights of convolutions into the network's memory format.

    Those that have it stay where they are, those of 1x1 convolutions too, whose strides could be read either way (torch
    would copy them): a network in training lies in its optimizer's memory.
    """
    for weight in network.parameters():
        if weight.ndim == 4 and not weight.is_contiguous(memory_format=network.memory_format):
            weight.data = weight.data.contiguous(memory_format=network.memory_format)


def largest_tile(network: Network) -> int:
    """LR pixels a side of the largest tile that the network's GPU has memory for now; on a CPU, the network's own.

    Waits for the device: call it once for many images.
    """
    device = next(network.parameters()).device
    if device.type == "cpu":
        return network.tile
    torch.cuda.empty_cache()  # what torch keeps may belong to a captured graph, out of reach
    free, _ = torch.cuda.mem_get_info(device)
    return tile_within(int(SHARE * free), network)


def tile_within(free: int, network: Network) -> int:
    """LR pixels a side of the largest tile that takes at most so many bytes with its halo in float32.

    At least `SMALLEST`: where that is too much, it is better said than made pixel by pixel.
    A small image tells what a pixel takes.
    """
    most = appetite(network, torch.zeros(1, 3, PROBE, PROBE, device=next(network.parameters()).device))
    pixels = PROBE**2 * min(free / most.bytes, MOST_VALUES / most.values)
    return max(math.isqrt(int(pixels)) - 2 * network.halo, SMALLEST)


def appetite(network: Network, image: Tensor) -> "Appetite":
    """What the network takes for an image, float [N, 3, h, w] in 0..1, beyond its weights."""
    most = Appetite(network.state_dict().values())
    with torch.inference_mode(), torch.autocast(image.device.type, enabled=False), most:
        network(image.contiguous(memory_format=torch.channels_last))
    return most


class Appetite(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts what the tensors that are made in its scope take at most, views of `others` left aside."""

    def __init__(self, others: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._known = weakref.WeakSet(one.untyped_storage() for one in others)
        self.bytes = 0
        """Of all that live at once."""
        self.values = 0
        """Of the largest one."""
        self._now = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator and count its results."""
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor)
        return made

    def _count(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        self.values = max(self.values, tensor.numel())
        if storage not in self._known:
            self._known.add(storage)
            self._now += storage.nbytes()
            self.bytes = max(self.bytes, self._now)
            weakref.finalize(storage, self._forget, storage.nbytes())

    def _forget(self, size: int) -> None:
        self._now -= size
