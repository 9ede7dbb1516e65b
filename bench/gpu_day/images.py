"""Whole images: how long teaching, validation and their parts take, in every precision and tile."""

import time
from collections.abc import Callable
from functools import partial
from itertools import product

import torch
from eco_fast_kernels import imresize
from torch import Tensor

from bench.gpu_day.day import DEVICE, Day
from bench.gpu_day.kernels import NETWORKS
from eco_fast.evaluation.metrics import score
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.inference.whole_images import largest_tile, whole_images
from eco_fast.models import Network, build

SIZES = ((1356, 2040), (1404, 2040), (1152, 2040), (1424, 2040), (2040, 1356))
"""Heights and widths of images of DIV2K."""


def measure_images(day: Day) -> None:
    """One image through three networks; D and the scores on either device; images of five sizes."""
    size = (96, 120) if day.rehearse else SIZES[0]
    for device in ("cpu", DEVICE):
        hr = image_of(*size, device)
        day.add("images", what="D", device=device, seconds=_seconds(partial(imresize, hr[None], 2)))
        seconds = _seconds(partial(score, hr, hr.flip(0), 2))
        day.add("images", what="scores", device=device, seconds=seconds)
    lr = imresize(image_of(*size)[None], 2)[0]
    for name, model in NETWORKS.items():
        if not day.has_time(f"images {name}", 8):
            continue
        network = build(model, 2).to(DEVICE).eval()
        network.to(memory_format=network.memory_format)  # type: ignore[call-overload]
        _all_ways(day, name, network, lr)
        if name == "edsr-baseline":
            _sizes(day, network)


def _all_ways(day: Day, name: str, network: Network, lr: Tensor) -> None:
    """Every precision and tile, against float32 in tiles."""
    exact = None
    largest = largest_tile(network)
    for precision, tile in product(("fp32", "tf32", "bf16"), ("256", "largest")):

        def run(tile: str = tile, precision: str = precision) -> Tensor:
            with whole_images(tf32=precision == "tf32"), torch.autocast("cuda", torch.bfloat16, precision == "bf16"):
                return upscale_tiled(network, lr, tile=largest if tile == "largest" else int(tile))

        sr = run()
        exact = sr if exact is None else exact
        differ = (sr != exact).float().mean().item()
        row = {"network": name, "precision": precision, "tile": tile, "values_that_differ": differ}
        day.add("images", what="network", **row, seconds=_seconds(run))


def _sizes(day: Day, network: Network) -> None:
    """LR images of new sizes, with and without cuDNN's search."""
    images = [image_of(height // 2, width // 2) for height, width in (SIZES[:1] if day.rehearse else SIZES)]
    for search in (False, True):

        def run(search: bool = search) -> None:
            with whole_images():
                torch.backends.cudnn.benchmark = search
                for image in images:
                    upscale_tiled(network, image)

        day.add("images", what="five sizes", cudnn_benchmark=search, seconds=_seconds(run, warm=False))


def image_of(height: int, width: int, device: str = DEVICE) -> Tensor:
    """Random pixels, uint8 [height, width, 3]: the time does not depend on them."""
    return torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, device=device)


def _seconds(work: Callable[[], object], *, warm: bool = True) -> float:
    """Of one call until the device has finished it; the second one unless `warm` is False."""
    if warm:
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began
