"""`eco-fast analyze noise`: the noise of images, and a network's regression of it (paper, Appendix B, Figure 8).

The noise of an image is HR minus centroid. A network that is fitted to it from LR alone (objective `residual`) can at
best predict the mean over all HR images of that LR, which is 0 for an ideal teacher: the noise of a single image is in
its HR alone.

noise_NAME.png    HR and centroid, both maps on one scale, their spectra and radial profiles
noise_NAME.npz    noise and regressed, float32 [H, W, 3], in grey levels
noise.csv         mean, root mean square and correlation of both
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from eco_fast.data.images import Pixels
from eco_fast.data.objective import MID_GREY
from eco_fast.data.resize import to_tensor
from eco_fast.inference.tiling import output_of
from eco_fast.inference.whole_images import whole_images
from eco_fast.models import Network
from eco_fast.study.analyze.examples import Example, examples
from eco_fast.study.analyze.runs import open_run
from eco_fast.study.analyze.spectrum_report import radial_profile
from eco_fast.study.analyze.targets import luma_of
from eco_fast.training.figures import save_figure
from eco_fast.utils.files import write_atomically
from eco_fast.utils.table_io import write_csv

Map = npt.NDArray[np.float32]
SHOWN = 99.5  # percentile of the noise's magnitude at which the colours saturate


def noise(folder: Path, sources: Sequence[str], out: Path) -> None:
    """Write noise maps and their statistics.

    Args:
        folder: a run of objective `residual`.
        sources: folders or files; empty: the first of the run's training images.
        out: folder of the results.

    Raises:
        ValueError: another run, or a bad image; names it.
    """
    run = open_run(folder)
    if run.objective != "residual":
        raise ValueError(
            f"{folder}: expected a network that predicts residuals, but its objective is {run.objective}; "
            "train one with --objective.name residual"
        )
    network, _ = run.network("last")
    rows = []
    for one in examples(run.config, run.teacher, sources, "noise", run.hr):
        maps = {"noise": noise_of(one.hr, one.sr), "regressed": regressed(network, one.lr, run.device)}
        write_atomically(out / f"noise_{one.name}.npz", lambda file, maps=maps: np.savez(file, **maps))  # type: ignore[misc]
        draw_noise(out / f"noise_{one.name}.png", one, maps)
        rows.append({"image": one.name, **numbers(maps)})
    write_csv(out / "noise.csv", rows)
    for row in rows:
        print(
            f"{row['image']}: noise {row['noise_rms']:.2f} grey levels, regressed {row['regressed_rms']:.2f}, "
            f"correlation {row['correlation']:.3f}"
        )
    print(f"maps and numbers: {out}")


def noise_of(hr: Pixels, sr: Pixels) -> Map:
    """HR - SR in grey levels: float32 [H, W, 3]."""
    return hr.astype(np.float32) - sr.astype(np.float32)


def regressed(network: Network, lr: Pixels, device: str) -> Map:
    """The network's prediction of the noise, in grey levels, not rounded: float32 [H, W, 3]."""
    with whole_images():
        output: Map = output_of(network, to_tensor(lr, device)).cpu().numpy()
    return output - np.float32(255 * MID_GREY)


def numbers(maps: Mapping[str, Map]) -> dict[str, float]:
    """Mean and root mean square of each map in grey levels, over pixels and colours, and their correlation."""
    values: dict[str, float] = {}
    for name, one in maps.items():
        values |= {f"{name}_mean": float(one.mean()), f"{name}_rms": float(np.sqrt(np.mean(one**2)))}
    first, second = (one - one.mean() for one in maps.values())
    size = float(np.sqrt(np.mean(first**2) * np.mean(second**2)))
    return {**values, "correlation": float(np.mean(first * second)) / size if size else 0.0}


def draw_noise(path: Path, one: Example, maps: Mapping[str, Map]) -> None:
    """Two rows: the image, its centroid and both maps; the maps' spectra and profiles."""
    titles = {"noise": "HR - centroid", "regressed": "regressed from LR"}
    planes = {name: luma_of(values) for name, values in maps.items()}
    figure = Figure(figsize=(13, 6), layout="constrained")
    (*images, noise, regression), (*spectra, profiles, rest) = figure.subplots(2, 4)
    for axes, title, pixels in zip(images, ("HR", "centroid"), (one.hr, one.sr), strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title)
    limit = float(np.percentile(np.abs(planes["noise"]), SHOWN)) or 1.0
    drawn: Any = None
    for axes, (name, plane) in zip((noise, regression), planes.items(), strict=True):
        drawn = axes.imshow(plane, vmin=-limit, vmax=limit, cmap="RdBu_r", interpolation="nearest")
        axes.set_title(titles[name])
    figure.colorbar(drawn, ax=[noise, regression], label="luma (grey levels)", shrink=0.8)
    squares = {name: spectrum_of(plane) for name, plane in planes.items()}
    scale = LogNorm(*np.percentile(np.maximum(squares["noise"], 1e-3), (1, 99.9)))
    for axes, (name, square) in zip(spectra, squares.items(), strict=True):
        drawn = axes.imshow(np.maximum(square, 1e-3), norm=scale, extent=(-0.5, 0.5, 0.5, -0.5))
        axes.set(title=f"spectrum: {titles[name]}", xlabel="cycles per pixel", ylabel="cycles per pixel")
    figure.colorbar(drawn, ax=spectra, label="magnitude (grey levels)", shrink=0.8)
    for name, square in squares.items():
        frequency, profile = radial_profile(square)
        profiles.plot(frequency, np.maximum(profile, 1e-3), label=titles[name])
    profiles.set(yscale="log", xlabel="cycles per pixel", ylabel="magnitude (grey levels)", title="radial profiles")
    profiles.grid(alpha=0.3)
    profiles.legend(fontsize="small")
    for axes in (*images, noise, regression, rest):
        axes.axis("off")
    save_figure(figure, path)


def spectrum_of(plane: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Magnitudes of the largest central square, orthonormal, zero frequency in the centre: float64 [n, n]."""
    side = min(plane.shape)
    top, left = ((size - side) // 2 for size in plane.shape)
    square = plane[top : top + side, left : left + side]
    return np.abs(np.fft.fftshift(np.fft.fft2(square, norm="ortho")))
