"""`eco-fast evaluate`: PSNR and SSIM of a network over HR folders, or of images that exist."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from eco_fast_kernels import Rounding
from rich.markup import escape

from eco_fast.config import Scale
from eco_fast.data.folders import find_images
from eco_fast.data.images import prefix_errors, write_png
from eco_fast.data.noise import describe_noise
from eco_fast.data.output_paths import name_outputs
from eco_fast.data.resize import read_cropped, to_pixels, to_tensor
from eco_fast.evaluation.metrics import Scores, average, read_scores, score
from eco_fast.evaluation.scoring import gather, image_pair, mean_score
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.inference.whole_images import largest_tile, ready, whole_images
from eco_fast.models import Network, load_network
from eco_fast.utils import distributed
from eco_fast.utils.files import write_json
from eco_fast.utils.progress import track
from eco_fast.utils.table_io import Table


class SetScores(dict[str, Scores]):
    """The scores of a set's images, by name."""

    @property
    def mean(self) -> Scores:
        """Each score's mean over the images."""
        return average(list(self.values()))


Results = dict[str, SetScores]
"""By the set as it was named."""


def evaluate(
    network: Network | str | Path,
    folders: str | Path | Sequence[str | Path],
    scale: int | None = None,
    *,
    rounding: Rounding = "uint8",
    noise_sigma: float = 0.0,
    save_images: Path | None = None,
    tile: int | None = None,
    device: str = "auto",
) -> Results:
    """Score a network on HR folders, whose LR images are made on the fly, in true float32.

    Under torchrun all ranks call it, and share the images.

    Args:
        network: or the checkpoint of one.
        folders: a folder or "builtin:..." set, or several, each a set of its own.
        scale: must be the network's; None: it is.
        rounding: MATLAB's convention of the LR images: "uint8" or "im2double".
        noise_sigma: standard deviation of the noise on them, in grey levels; the scores are means over its draws.
        save_images: where to write the SR images, as SET/NAME.png, see `name_outputs`; with noise, those of the first
            draw.
        tile: LR pixels a side of a tile; None: as many as a GPU's memory takes, the network's own on a CPU.
        device: where a checkpoint's network goes: "auto", "cpu", "cuda", ...; a network stays where it is.

    Returns:
        By the folder's name as given, the `SetScores` of its images, which have a `mean`. PSNR is in dB.

    Raises:
        ValueError: a bad checkpoint, scale, folder or image; names it.
    """
    sets = [folders] if isinstance(folders, str | Path) else folders
    named = "" if isinstance(network, Network) else f"{network}: "
    network = ready(network if isinstance(network, Network) else load_network(network, device))
    where = next(network.parameters()).device
    if scale not in (None, network.scale):
        raise ValueError(f"{named}a network for x{network.scale}, but x{scale} is asked for")
    scale = network.scale
    found = {str(source): find_images([str(source)]) for source in sets}
    wanted = {str(path): Path(name).with_suffix(".png") for one in found.values() for name, path in one.items()}
    files = name_outputs(wanted)
    results: Results = {}
    with whole_images():
        tile = tile or largest_tile(network)
        for source, images in found.items():
            scores = {}
            for name, path in track(distributed.shard(images.items()), description=f"evaluate {escape(source)}"):
                pair = image_pair(read_cropped(path, scale), scale, rounding, noise_sigma=noise_sigma, device=where)
                upscaled = [upscale_tiled(network, lr, tile=tile) for lr in pair.lr]
                if save_images is not None:
                    write_png(save_images / files[str(path)], to_pixels(upscaled[0]))
                with prefix_errors(path):
                    scores[name] = mean_score(upscaled, pair.hr, scale)
            results[source] = SetScores(gather(read_scores(scores)))
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
        sr, hr = (to_tensor(read_cropped(path, scale)) for path in (sr_path, hr_path))
        with prefix_errors(sr_path):
            scores[stem] = score(sr, hr, scale)
    return {sr_folder: SetScores(read_scores(scores))}


def show(results: Results, noise_sigma: float = 0.0) -> None:
    """Print one table: every image, and the mean of each set."""
    title = f"LR {describe_noise(noise_sigma)}" if noise_sigma else ""
    rows = []
    for source, scores in results.items():
        for name, one in scores.items():
            rows.append([source, name.partition("/")[2] or name, *_cells(one)])
        rows.append([source, "mean", *_cells(scores.mean)])
    Table(title, ("set", "image", "PSNR-Y (dB)", "SSIM-Y", "PSNR-RGB (dB)", "SSIM-RGB"), rows).show()


def write_results(path: Path, results: Results, **facts: Any) -> None:
    """Write JSON: facts, and per set the mean and every image. A PSNR of null means identical images."""
    sets = {
        source: {
            "mean": json_safe(scores.mean),
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


def _cells(scores: Scores) -> list[str]:
    return [f"{value:.3f}" if name.startswith("psnr") else f"{value:.4f}" for name, value in scores.as_dict().items()]


def _by_unique_key(images: Iterable[tuple[str, Path]]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for key, path in images:
        if found.setdefault(key, path) != path:
            raise ValueError(f"{path} and {found[key]} are both called {key}; rename one of them")
    return found


def _extends(stem: str, known: str) -> bool:
    """Whether `stem` is `known` and a suffix: babyx2, baby_x2, baby-SR."""
    return stem.startswith(known) and re.fullmatch(r"(x\d+)?([-_. ].*)?", stem[len(known) :]) is not None
