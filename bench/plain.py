"""What benchmarks compare with: the field's usual implementations, RCAN's shapes, and timing in turns."""

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from eco_fast.data.folders import builtin_images
from eco_fast.data.images import Pixels, read_image
from eco_fast.training.profiling import Work

SIDE = 480  # of sub-images, in pixels


def sub_images(count: int, generator: np.random.Generator) -> list[Pixels]:
    """480x480 crops of photographs, with a little noise so that no two are the same."""
    photos = [read_image(path) for group in ("train", "test") for _, path in builtin_images(group)]
    photos = [photo for photo in photos if min(photo.shape[:2]) >= SIDE]
    made = []
    for index in range(count):
        photo = photos[index % len(photos)]
        top, left = (generator.integers(0, size - SIDE + 1) for size in photo.shape[:2])
        noise = generator.normal(0, 1, (SIDE, SIDE, 3))
        made.append(np.clip(photo[top : top + SIDE, left : left + SIDE] + noise, 0, 255).astype(np.uint8))
    return made


class SubImages(Dataset[tuple[Tensor, ...]]):
    """The field's usual data set: PNG sub-images, each decoded whole for one patch; LR by Pillow.

    Args:
        folders: each with its version of the same sub-images: HR, or HR and the centroids.
        scale: upscaling factor.
        patch: side of an LR patch.
    """

    def __init__(self, folders: Sequence[Path], scale: int, patch: int) -> None:
        self.files = list(zip(*(sorted(folder.iterdir()) for folder in folders), strict=True))
        self.scale, self.patch = scale, patch

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        """For each folder the HR patch and its LR patch, float [3, H, W]; the same crop in the same orientation."""
        side = self.scale * self.patch
        left, top = torch.randint(0, SIDE - side + 1, (2,)).tolist()
        turn = list(Image.Transpose)[int(torch.randint(7, ()))]
        made = []
        for path in self.files[index % len(self.files)]:
            with Image.open(path) as image:
                patch = image.convert("RGB").crop((left, top, left + side, top + side)).transpose(turn)
            lr = patch.resize((self.patch, self.patch), Image.Resampling.BICUBIC)
            made += [torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 255 for one in (patch, lr)]
        return tuple(made)


def rcan_shapes() -> list[tuple[int, ...]]:
    """RCAN's trainable tensors at x2: 10 groups of 20 blocks, 64 features, reduction 16; 15 444 643 weights."""
    conv: list[tuple[int, ...]] = [(64, 64, 3, 3), (64,)]
    attention: list[tuple[int, ...]] = [(4, 64, 1, 1), (4,), (64, 4, 1, 1), (64,)]
    body = ((conv * 2 + attention) * 20 + conv) * 10 + conv
    return [(64, 3, 3, 3), (64,), *body, (256, 64, 3, 3), (256,), (3, 64, 3, 3), (3,)]


def lamb_per_tensor(parameters: Sequence[nn.Parameter], state: dict[nn.Parameter, dict[str, Any]]) -> None:
    """One update as the authors' trainer does it: all gradients clipped at 0.1, then LAMB in a loop over the tensors.

    Learning rate 1e-3, betas 0.9 and 0.99, epsilon 1e-6, no weight decay. The host reads both norms of every tensor.
    `state` holds exp_avg, exp_avg_sq and step of each parameter.
    """
    nn.utils.clip_grad_value_(parameters, 0.1)
    for parameter in parameters:
        if parameter.grad is None:
            continue
        p, g, kept = parameter.data, parameter.grad.data, state[parameter]
        m, v = kept["exp_avg"], kept["exp_avg_sq"]
        kept["step"] += 1
        m.mul_(0.9).add_(g, alpha=0.1)
        v.mul_(0.99).addcmul_(g, g, value=0.01)
        weight_norm = torch.norm(p).clamp(0, 10)
        update = m / v.sqrt().add(1e-6)
        update_norm = torch.norm(update)
        trust = 1.0 if weight_norm == 0 or update_norm == 0 else weight_norm / update_norm
        p.add_(update, alpha=-1e-3 * trust)


def lamb_parameters(device: str) -> tuple[list[nn.Parameter], dict[nn.Parameter, dict[str, Any]]]:
    """RCAN's parameters with gradients, and the state of `lamb_per_tensor`."""
    parameters = [nn.Parameter(torch.randn(shape, device=device) * 0.05) for shape in rcan_shapes()]
    state: dict[nn.Parameter, dict[str, Any]] = {}
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
        moments = {name: torch.zeros_like(parameter) for name in ("exp_avg", "exp_avg_sq")}
        state[parameter] = {"step": 0, **moments}
    return parameters, state


def recorded(works: Sequence[Work]) -> Work:
    """On a GPU: what launches some pieces of work as one CUDA graph."""
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for _ in range(3):  # compilation, the libraries' choice of code
            for work in works:
                work()
    side.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        for work in works:
            work()
    return graph.replay


def ratio(first: Sequence[float], second: Sequence[float]) -> float:
    """The median of the ratios of each round."""
    return statistics.median(one / other for one, other in zip(first, second, strict=True))


def alternately(ways: dict[str, Work], steps: int, device: str) -> dict[str, float]:
    """Seconds per step of each way. They take turns step by step, so that a drifting clock speed hits all the same.

    Each does an untimed step first, which brings back the memory that the others have evicted.
    """
    for work in ways.values():
        time_of(work, 1, device)
    totals = dict.fromkeys(ways, 0.0)
    for _ in range(steps):
        for way, work in ways.items():
            totals[way] += time_of(work, 1, device) / steps
    return totals


def time_of(work: Work, times: int, device: str) -> float:
    """Seconds per call, averaged over some calls."""
    began = time.perf_counter()
    for _ in range(times):
        work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / times
