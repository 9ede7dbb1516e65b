"""The files of `eco-fast analyze spectrum`.

spectrum.npz      the mean magnitudes, float64 [h, w] under NAME/input, ..., zero frequency in the centre
spectrum.csv      their radial profiles
spectrum.png      both, in powers of ten
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from eco_fast.training.figures import save_figure
from eco_fast.utils.files import write_atomically
from eco_fast.utils.table_io import write_csv

Plane = npt.NDArray[np.float64]

TINY = 1e-30  # the least magnitude that is drawn
NAMES = ("input", "target", "input_gradient", "target_gradient")
TITLES = ("network input (LR)", "target (HR)", "gradient wrt the input", "gradient wrt the target")


@dataclass(frozen=True)
class Spectra:
    """The mean spectra under one objective.

    Attributes:
        name: unique.
        step: steps done.
        alpha: weight of the real pair in the target.
        loss: mean over the patches, on the 0..255 scale.
        patches: their number.
        planes: by the names of `NAMES`, [h, w] or [H, W], zero frequency in the centre: mean magnitudes.
    """

    name: str
    step: int
    alpha: float
    loss: float
    patches: int
    planes: Mapping[str, Plane]


def radial_profile(plane: Plane) -> tuple[Plane, Plane]:
    """Means over rings around the centre, each as wide as the distance of two frequencies.

    Args:
        plane: [n, n], zero frequency in the centre as `fftshift` has it.

    Returns:
        The rings' frequencies in cycles per pixel, 0 to about 0.71, and the means, both [R]. Rings beyond 0.5 are
        parts of circles, in the corners.
    """
    side = len(plane)
    along = np.fft.fftshift(np.fft.fftfreq(side))
    ring = np.rint(np.hypot(along[:, None], along[None]) * side).astype(np.int64).ravel()
    return np.arange(ring.max() + 1) / side, np.bincount(ring, plane.ravel()) / np.bincount(ring)


def write_spectra(folder: Path, found: Sequence[Spectra]) -> None:
    """Write all files."""
    planes = {f"{one.name}/{name}": plane for one in found for name, plane in one.planes.items()}
    write_atomically(folder / "spectrum.npz", lambda file: np.savez_compressed(file, allow_pickle=False, **planes))
    rows = [
        {
            "name": one.name,
            "step": one.step,
            "alpha": one.alpha,
            "loss": one.loss,
            "patches": one.patches,
            "spectrum": name,
            "cycles_per_pixel": frequency,
            "magnitude": value,
        }
        for one in found
        for name in NAMES
        for frequency, value in zip(*radial_profile(one.planes[name]), strict=True)
    ]
    write_csv(folder / "spectrum.csv", rows)
    draw_spectra(folder / "spectrum.png", found)


def draw_spectra(path: Path, found: Sequence[Spectra]) -> None:
    """A row of planes for each objective, in the same colours for all, and a row of radial profiles."""
    figure = Figure(figsize=(11, 2.5 * len(found) + 3.6), layout="constrained")
    rows = (*[1.0] * len(found), 1.2)
    panels = figure.subplots(len(rows), len(NAMES), gridspec_kw={"height_ratios": rows}, squeeze=False)
    for column, name, title in zip(panels.T, NAMES, TITLES, strict=True):
        *planes, profiles = column
        powers = [np.log10(one.planes[name].clip(TINY)) for one in found]
        colours = {"vmin": np.percentile(powers, 1), "vmax": np.max(powers), "cmap": "magma"}
        for axes, power in zip(planes, powers, strict=True):
            side = len(power)
            low, high = (edge / side - 0.5 / side for edge in (-(side // 2), side - side // 2))
            image = axes.imshow(power, extent=(low, high, high, low), interpolation="nearest", **colours)
            axes.set(xticks=(-0.5, 0, 0.5), yticks=(-0.5, 0, 0.5))
        planes[0].set_title(title)
        figure.colorbar(image, ax=planes, location="bottom", label="log10 of magnitude", aspect=30)
        for one in found:
            profiles.plot(*radial_profile(one.planes[name]), label=one.name)
        profiles.axvline(0.5, color="grey", linewidth=1, linestyle=":")
        profiles.set(xlabel="cycles per pixel", yscale="log")
        profiles.grid(alpha=0.3)
    for one, axes in zip(found, panels[:, 0], strict=False):
        axes.set_ylabel(f"{one.name}, step {one.step}")
    panels[-1, 0].set_ylabel("mean magnitude over rings")
    panels[-1, 0].legend(fontsize="small")
    save_figure(figure, path)
