"""What a run ends with: a table, curves, and images side by side."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from eco_fast.data.noise import describe_noise
from eco_fast.data.output_paths import flat_stems
from eco_fast.training.crops import Crop
from eco_fast.utils.files import write_atomically
from eco_fast.utils.table_io import Table

mpl.use("agg")

SUMMARY_ROWS = ("bicubic", "teacher", "baseline", "student")


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


def draw_samples(folder: Path, crops: Sequence[Crop]) -> None:
    """Per crop its panels side by side, with the scores of its image."""
    stems = flat_stems(crop.image for crop in crops)
    for crop in crops:
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        for axes, (panel, pixels) in zip(figure.subplots(1, len(crop.panels)), crop.panels.items(), strict=True):
            axes.imshow(pixels, interpolation="nearest")
            axes.set_title(f"{panel}, {crop.psnr_y[panel]:.2f} dB" if panel in crop.psnr_y else panel)
            axes.set(xticks=[], yticks=[])  # rather than axis("off"): the layout makes no room for such a panel's title
        save_figure(figure, folder / f"{stems[crop.image]}.png")


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=120))
