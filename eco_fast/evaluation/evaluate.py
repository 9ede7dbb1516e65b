"""`eco-fast evaluate`: PSNR and SSIM of a checkpoint over HR folders, or of images that exist."""

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eco_fast_kernels import Rounding
from rich.console import Console
from rich.progress import track
from rich.table import Table

from eco_fast.config import Scale
from eco_fast.data.images import Pixels, find_images, prefix_errors, write_png
from eco_fast.data.noise import NOISE_DRAWS, describe_noise, noisy_images
from eco_fast.data.resize import downsample_image, modcrop, read_cropped, upsample_image
from eco_fast.evaluation.metrics import Scores, average, score
from eco_fast.inference.tiling import super_resolve
from eco_fast.models import Network, load_network_of_scale
from eco_fast.utils import distributed
from eco_fast.utils.device import pick_device
from eco_fast.utils.files import write_json

Results = dict[str, dict[str, Scores]]
"""Scores by set and image."""


def score_network(
    network: Network,
    images: Mapping[str, Pixels],
    rounding: Rounding = "uint8",
    *,
    noise_sigma: float = 0.0,
    draws: int = NOISE_DRAWS,
    device: str = "cpu",
) -> dict[str, Scores]:
    """Score a network on HR images (uint8 [H, W, 3] by name), which the ranks share.

    LR is made on the fly, the border is the scale. With noise on LR, of `noise_sigma` grey levels, an image's scores
    are the means over its first `draws` noises.
    """
    network.eval()

    def upscale(lr: Pixels) -> Pixels:
        return super_resolve(network, lr, device=device)

    return _score_all(images, network.scale, rounding, noise_sigma, draws, upscale)


def score_bicubic(
    images: Mapping[str, Pixels], scale: int, rounding: Rounding = "uint8", *, noise_sigma: float = 0.0
) -> dict[str, Scores]:
    """The tables' baseline: LR upscaled by MATLAB's bicubic; shared and averaged as by `score_network`."""
    return _score_all(images, scale, rounding, noise_sigma, NOISE_DRAWS, lambda lr: upsample_image(lr, scale, rounding))


def evaluate_checkpoint(
    checkpoint: Path,
    sets: Sequence[str],
    scale: Scale,
    *,
    rounding: Rounding = "uint8",
    noise_sigma: float = 0.0,
    save_images: Path | None = None,
    tile: int | None = None,
    device: str = "auto",
) -> Results:
    """Score a checkpoint on HR folders.

    Args:
        checkpoint: the network.
        sets: one folder (or "builtin:..." set) each.
        scale: must be the network's.
        rounding: MATLAB's convention of the LR images.
        noise_sigma: standard deviation of the noise on them, in grey levels; the scores are means over its draws.
        save_images: where to write the SR images, as SET/NAME.png; with noise, those of the first draw.
        tile: LR pixels a side of a tile; None: the network's own.
        device: "auto", "cpu", "cuda", ...

    Raises:
        ValueError: a bad checkpoint, scale, folder or image, or two SR images for one file; names it.
    """
    where = pick_device(device)
    network = load_network_of_scale(checkpoint, scale).to(where)
    found = {source: find_images([source]) for source in sets}
    if save_images is not None:
        _by_unique_key((str(Path(name).with_suffix("")), path) for one in found.values() for name, path in one.items())
    results: Results = {}
    for source, images in found.items():
        scores = {}
        for name, path in track(distributed.shard(images.items()), description=f"evaluate {source}"):
            hr = read_cropped(path, scale)
            drawn: list[Scores] = []
            for lr in noisy_images(downsample_image(hr, scale, rounding), noise_sigma):
                sr = super_resolve(network, lr, tile=tile, device=where)
                if save_images is not None and not drawn:
                    write_png((save_images / name).with_suffix(".png"), sr)
                with prefix_errors(path):
                    drawn.append(score(sr, hr, scale))
            scores[name] = average(drawn)
        results[source] = _merged(scores, images)
    return results


def evaluate_images(sr_folder: str, hr_folder: str, scale: Scale) -> Results:
    """Score existing SR images against HR; NAME pairs with NAME, or with a longer name that begins with it.

    Raises:
        ValueError: an image has no partner or several, or their sizes do not match; names it.
    """
    hr_images = _by_unique_key((Path(name).stem, path) for name, path in find_images([hr_folder]).items())
    pairs: dict[str, tuple[Path, Path]] = {}
    for name, path in find_images([sr_folder]).items():
        stem = Path(name).stem
        candidates = [known for known in hr_images if stem == known or _extends(stem, known)]
        if not candidates:
            raise ValueError(f"{path}: no HR image of that name in {hr_folder}")
        partner = max(candidates, key=len)
        if partner in pairs:
            raise ValueError(f"{path} and {pairs[partner][0]} both pair with {hr_images[partner]}")
        pairs[partner] = (path, hr_images[partner])
    if missing := sorted(hr_images.keys() - pairs.keys()):
        raise ValueError(f"{sr_folder}: no SR image for {hr_images[missing[0]]} ({len(missing)} are missing)")
    scores = {}
    for stem, (sr_path, hr_path) in track(sorted(pairs.items()), description="evaluate"):
        sr, hr = read_cropped(sr_path, scale), read_cropped(hr_path, scale)
        with prefix_errors(sr_path):
            scores[stem] = score(sr, hr, scale)
    return {sr_folder: scores}


def show(results: Results, noise_sigma: float = 0.0) -> None:
    """Print one table: every image, and the mean of each set."""
    title = f"LR {describe_noise(noise_sigma)}" if noise_sigma else None
    table = Table("set", "image", "PSNR-Y (dB)", "SSIM-Y", "PSNR-RGB (dB)", "SSIM-RGB", title=title)
    for source, scores in results.items():
        for name, one in scores.items():
            table.add_row(source, Path(name).name, *_cells(one))
        table.add_row(source, "mean", *_cells(average(list(scores.values()))), style="bold", end_section=True)
    Console().print(table)


def write_results(path: Path, results: Results, **facts: Any) -> None:
    """Write JSON: facts, and per set the mean and every image. A PSNR of null means identical images."""
    sets = {
        source: {
            "mean": json_safe(average(list(scores.values()))),
            "images": {name: json_safe(one) for name, one in scores.items()},
        }
        for source, scores in results.items()
    }
    write_json(path, {**facts, "sets": sets})


def mean_scores(
    results: Mapping[str, Mapping[str, Scores]], images: Iterable[str]
) -> dict[str, dict[str, float | None]]:
    """For JSON: the mean over some images of each network's scores (by network and image)."""
    names = list(images)
    return {network: json_safe(average([scores[name] for name in names])) for network, scores in results.items()}


def json_safe(scores: Scores) -> dict[str, float | None]:
    """Scores for JSON, which knows no infinity."""
    return {name: value if math.isfinite(value) else None for name, value in scores.as_dict().items()}


def _score_all(
    images: Mapping[str, Pixels],
    scale: int,
    rounding: Rounding,
    noise_sigma: float,
    draws: int,
    upscale: Callable[[Pixels], Pixels],
) -> dict[str, Scores]:
    scores = {}
    for name in distributed.shard(images):
        hr = modcrop(images[name], scale)
        noisy = noisy_images(downsample_image(hr, scale, rounding), noise_sigma, draws)
        scores[name] = average([score(upscale(lr), hr, scale) for lr in noisy])
    return _merged(scores, images)


def _merged(scores: dict[str, Scores], names: Iterable[str]) -> dict[str, Scores]:
    """What all ranks have scored, in the order of the names."""
    merged = {name: one for part in distributed.all_gather(scores) for name, one in part.items()}
    return {name: merged[name] for name in names}


def _cells(scores: Scores) -> list[str]:
    return [f"{scores.psnr_y:.3f}", f"{scores.ssim_y:.4f}", f"{scores.psnr_rgb:.3f}", f"{scores.ssim_rgb:.4f}"]


def _by_unique_key(images: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for key, path in images:
        if found.setdefault(key, path) != path:
            raise ValueError(f"{path} and {found[key]} are both called {key}; rename one of them")
    return found


def _extends(stem: str, known: str) -> bool:
    """Whether `stem` is `known` and a suffix: babyx2, baby_x2, baby-SR."""
    return stem.startswith(known) and re.fullmatch(r"(x\d+)?([-_. ].*)?", stem[len(known) :]) is not None
