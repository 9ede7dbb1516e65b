"""Whole images: how long teaching, validation and their parts take, in every precision and tile."""

import time
from collections.abc import Callable
from functools import partial
from itertools import product

import numpy as np
import torch
from eco_fast_kernels import imresize

from bench.gpu_day.day import DEVICE, Day
from bench.gpu_day.kernels import NETWORKS
from eco_fast.data.images import Pixels
from eco_fast.data.resize import downsample_image
from eco_fast.evaluation.metrics import score
from eco_fast.inference.tiling import super_resolve
from eco_fast.models import Network, build

SIZE = (1356, 2040)
"""Height and width of an image of DIV2K."""
SIZES = ((1356, 2040), (1404, 2040), (1152, 2040), (1424, 2040), (2040, 1356))
"""Those that follow each other in a validation, for cuDNN's search."""
TILES = (256, 4096)
"""The network's own, and the whole image."""


def measure_pictures(day: Day) -> None:
    """One image through three networks; D and the scores on either device; images of five sizes."""
    hr = image_of(*((96, 120) if day.rehearse else SIZE))
    lr = downsample_image(hr, 2)
    for device in ("cpu", DEVICE):
        on_device = torch.from_numpy(hr).to(device)
        day.add("pictures", what="D", device=device, seconds=_seconds(partial(imresize, on_device[None], 2)))
    day.add("pictures", what="scores", device="cpu", seconds=_seconds(partial(score, hr, hr[::-1], 2)))
    for name, model in NETWORKS.items():
        if not day.has_time(f"pictures {name}", 8):
            continue
        network = build(model, 2).to(DEVICE).eval()
        network.to(memory_format=network.memory_format)  # type: ignore[call-overload]
        _all_ways(day, name, network, lr)
        if name == "edsr-baseline":
            _sizes(day, network)


def _all_ways(day: Day, name: str, network: Network, lr: Pixels) -> None:
    """Every precision and tile, against float32 in tiles."""
    exact = None
    for precision, tile in product(("fp32", "tf32", "bf16"), TILES):
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.benchmark = False

        def run(tile: int = tile, precision: str = precision) -> Pixels:
            with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
                return super_resolve(network, lr, tile=tile, device=DEVICE)

        try:
            sr = run()
        except torch.OutOfMemoryError:
            day.skip(f"pictures {name} {precision} tile {tile}: out of memory")
            torch.cuda.empty_cache()
            continue
        exact = sr if exact is None else exact
        row = {"network": name, "precision": precision, "tile": tile}
        differ = float(np.mean(sr != exact))
        day.add("pictures", what="network", **row, seconds=_seconds(run), values_that_differ=differ)


def _sizes(day: Day, network: Network) -> None:
    """Images of new sizes, with and without cuDNN's search."""
    images = [image_of(height // 2, width // 2) for height, width in (SIZES[:1] if day.rehearse else SIZES)]
    for benchmark in (False, True):
        torch.backends.cudnn.benchmark = benchmark
        seconds = _seconds(lambda: [super_resolve(network, image, device=DEVICE) for image in images], warm=False)
        day.add("pictures", what="five sizes", cudnn_benchmark=benchmark, seconds=seconds)


def image_of(height: int, width: int) -> Pixels:
    """Random pixels: the time does not depend on them."""
    pixels: Pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return pixels


def _seconds(work: Callable[[], object], *, warm: bool = True) -> float:
    """Of one call, which ends on the host; the second one unless `warm` is False."""
    if warm:
        work()
    torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - began
