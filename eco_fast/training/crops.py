"""The crops that a run shows: of each image the most detailed part as LR, bicubic, SR and HR, as files of their own.

FOLDER/crops.json         the images, with their PSNR
FOLDER/crops/IMAGE/       LR.png, bicubic.png, SR.png, HR.png
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from eco_fast_kernels import Rounding

from eco_fast.data.images import Pixels, write_png
from eco_fast.data.output_paths import flat_stems
from eco_fast.data.resize import to_pixels, to_tensor, upsample
from eco_fast.evaluation.metrics import luma, read_scores, score
from eco_fast.evaluation.scoring import image_pair
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.inference.whole_images import whole_images
from eco_fast.models import Network
from eco_fast.utils.files import name_damaged, write_json

CROP = 96  # side of the shown detail, in HR pixels
MAX_SAMPLES = 8
SAMPLES = "samples"  # folder of a run
LISTED = "crops.json"


@dataclass(frozen=True)
class Crop:
    """The most detailed part of an image."""

    image: str
    """Its name."""
    panels: Mapping[str, Pixels]
    """LR, bicubic, SR and HR: uint8 [side, side, 3], LR's side smaller by the scale."""
    psnr_y: Mapping[str, float]
    """Of the whole image in dB, by panel."""


@dataclass(frozen=True)
class StoredCrop:
    """A crop as `write_crops` has left it."""

    image: str
    panels: Mapping[str, Path]
    """By name, in the order of `Crop.panels`."""
    psnr_y: Mapping[str, float]


def cut_crops(
    network: Network, images: Mapping[str, Pixels], rounding: Rounding, noise_sigma: float = 0.0
) -> Iterator[Crop]:
    """The crops of the first `MAX_SAMPLES` images; with noise on LR, of its first draw."""
    device, scale = next(network.parameters()).device, network.scale
    for name, image in list(images.items())[:MAX_SAMPLES]:
        pair = image_pair(image, scale, rounding, noise_sigma=noise_sigma, draws=1, device=device)
        (bicubic,) = upsample(pair.lr[0][None], scale, rounding)
        with whole_images():
            sr = upscale_tiled(network, pair.lr[0])
        scores = read_scores({"bicubic": score(bicubic, pair.hr, scale), "SR": score(sr, pair.hr, scale)})
        top, left = most_detailed(to_pixels(pair.hr), scale)
        at_hr = (slice(top, top + CROP), slice(left, left + CROP))
        at_lr = tuple(slice(part.start // scale, part.stop // scale) for part in at_hr)
        panels = {"LR": pair.lr[0][at_lr], "bicubic": bicubic[at_hr], "SR": sr[at_hr], "HR": pair.hr[at_hr]}
        yield Crop(
            name,
            {panel: to_pixels(part) for panel, part in panels.items()},
            {panel: one.psnr_y for panel, one in scores.items()},
        )


def write_crops(folder: Path, crops: Sequence[Crop]) -> None:
    """Write each panel as PNG, and last of all the list of them."""
    stems = flat_stems(crop.image for crop in crops)
    listed = []
    for crop in crops:
        files = {panel: f"crops/{stems[crop.image]}/{panel}.png" for panel in crop.panels}
        for panel, pixels in crop.panels.items():
            write_png(folder / files[panel], pixels)
        psnr = {panel: value if math.isfinite(value) else None for panel, value in crop.psnr_y.items()}
        listed.append({"image": crop.image, "panels": files, "psnr_y": psnr})
    write_json(folder / LISTED, listed)


def read_crops(folder: Path) -> list[StoredCrop]:
    """The crops of a folder, if it has any.

    Raises:
        ValueError: their list is damaged.
    """
    path = folder / LISTED
    if not path.is_file():
        return []
    with name_damaged(path):
        return [
            StoredCrop(
                one["image"],
                {panel: folder / file for panel, file in one["panels"].items()},
                {panel: math.inf if value is None else value for panel, value in one["psnr_y"].items()},
            )
            for one in json.loads(path.read_text(encoding="utf-8"))
        ]


def most_detailed(hr: Pixels, scale: int) -> tuple[int, int]:
    """Top left corner, a multiple of the scale, of the crop with the largest mean gradient."""
    rows, columns = np.gradient(luma(to_tensor(hr)).numpy())
    detail = np.hypot(rows, columns)
    step = max(CROP // 4 // scale, 1) * scale
    corners = [
        (top, left)
        for top in range(0, max(hr.shape[0] - CROP, 0) + 1, step)
        for left in range(0, max(hr.shape[1] - CROP, 0) + 1, step)
    ]
    return max(corners, key=lambda corner: detail[corner[0] : corner[0] + CROP, corner[1] : corner[1] + CROP].mean())
