"""What a run ends with: a table, curves, and images side by side."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from eco_fast_kernels import Rounding
from matplotlib.figure import Figure

from eco_fast.data.images import Pixels
from eco_fast.data.noise import describe_noise
from eco_fast.data.output_paths import flat_stems
from eco_fast.data.resize import to_pixels, to_tensor, upsample
from eco_fast.evaluation.metrics import Scores, luma
from eco_fast.evaluation.scoring import image_pair
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.inference.whole_images import whole_images
from eco_fast.models import Network
from eco_fast.utils.files import write_atomically
from eco_fast.utils.table_io import Table

mpl.use("agg")

SUMMARY_ROWS = ("bicubic", "teacher", "baseline", "student")
CROP = 96  # side of the shown detail, in HR pixels
MAX_SAMPLES = 8


def show_summary(summary: Mapping[str, Any], folder: Path) -> None:
    """Print the final table, and where the images are."""
    title = f"x{summary['scale']} on {len(summary['images'])} held-out images"
    if "noise_sigma" in summary:
        title += f" {describe_noise(summary['noise_sigma'])}"
    rows = []
    for name in SUMMARY_ROWS:
        if name in summary:
            psnr, ssim = summary[name]["psnr_y"], summary[name]["ssim_y"]
            rows.append([name, "inf" if psnr is None else f"{psnr:.3f}", f"{ssim:.4f}"])
    if rows:
        Table(title, ("", "PSNR-Y (dB)", "SSIM-Y"), rows).show()
    whole = sum(summary["seconds"].values()) or 1.0
    stages = ", ".join(f"{name} {one:.0f} s ({one / whole:.0%})" for name, one in summary["seconds"].items())
    print(textwrap.fill(f"time: {stages}", 79, subsequent_indent=6 * " "))
    print(f"in {folder}: {'samples/, ' if summary['images'] else ''}curves.png, checkpoints/")


def draw_curves(path: Path, curves: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Loss, validation PSNR-Y, alpha and learning rate over the steps, one line per run."""
    panels = {
        "loss": "training loss (grey levels)",
        "psnr_y": "validation PSNR-Y (dB)",
        "alpha": "alpha, weight of the real pair",
        "learning_rate": "learning rate",
    }
    figure = Figure(figsize=(10, 6), layout="constrained")
    for axes, (key, label) in zip(figure.subplots(2, 2).flat, panels.items(), strict=True):
        for name, rows in curves.items():
            points = [(row["step"], row[key]) for row in rows if row.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, marker="." if len(points) < 20 else None)
        axes.set(xlabel="step", ylabel=label)
        axes.grid(alpha=0.3)
    if figure.axes[0].lines:
        figure.axes[0].legend()
    save_figure(figure, path)


def draw_samples(
    folder: Path,
    network: Network,
    images: Mapping[str, Pixels],
    scores: Mapping[str, Scores],
    bicubic: Mapping[str, Scores],
    rounding: Rounding,
    noise_sigma: float = 0.0,
) -> None:
    """Per image, the crop with most detail as LR (with its first noise), bicubic, SR and HR, and the image's scores."""
    device = next(network.parameters()).device
    stems = flat_stems(images)
    for name, image in list(images.items())[:MAX_SAMPLES]:
        pair = image_pair(image, network.scale, rounding, noise_sigma=noise_sigma, draws=1, device=device)
        (bicubic_image,) = upsample(pair.lr[0][None], network.scale, rounding)
        with whole_images():
            sr = upscale_tiled(network, pair.lr[0])
        top, left = most_detailed(to_pixels(pair.hr), network.scale)
        at_hr = (slice(top, top + CROP), slice(left, left + CROP))
        at_lr = tuple(slice(part.start // network.scale, part.stop // network.scale) for part in at_hr)
        panels = {
            "LR": pair.lr[0][at_lr],
            f"bicubic, {bicubic[name].psnr_y:.2f} dB": bicubic_image[at_hr],
            f"SR, {scores[name].psnr_y:.2f} dB": sr[at_hr],
            "HR": pair.hr[at_hr],
        }
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        for axes, (label, pixels) in zip(figure.subplots(1, len(panels)), panels.items(), strict=True):
            axes.imshow(to_pixels(pixels), interpolation="nearest")
            axes.set_title(label)
            axes.set(xticks=[], yticks=[])  # rather than axis("off"): the layout makes no room for such a panel's title
        save_figure(figure, folder / f"{stems[name]}.png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))


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
