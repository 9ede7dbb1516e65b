"""`eco-fast analyze targets`: the network's input and target as alpha grows (paper, Appendix A, Figure 7).

Target and input at alpha are alpha HR + (1 - alpha) SR and alpha D(HR) + (1 - alpha) D(SR) (Eq. 14).

NAME.png                     all of them, enlarged, cropped where the image has most detail
NAME-target-ALPHA.png ...    the same crops, pixel by pixel (rounded)
targets.csv                  of whole images: PSNR of the target against HR, and its sharpness, the mean squared
                             difference of neighbouring pixels in squared grey levels of luma
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from eco_fast import config as recipes
from eco_fast.config import Config, Overrides
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.resize import downsample_image
from eco_fast.evaluation.metrics import LUMA, psnr
from eco_fast.study.analyze.examples import Example, examples
from eco_fast.study.analyze.runs import open_run
from eco_fast.training.crops import CROP, most_detailed
from eco_fast.training.figures import save_figure
from eco_fast.utils.table_io import write_csv

FloatImage = npt.NDArray[np.float64]


def targets(source: str, sources: Sequence[str], alphas: Sequence[float], out: Path, overrides: Overrides = ()) -> None:
    """Write the targets of some images.

    Args:
        source: a run folder or a recipe, whose teacher makes the centroids.
        sources: folders or files; empty: the first of the recipe's test, validation or training images.
        alphas: weights of the real pair, 0..1.
        out: folder of the results.
        overrides: other values for keys of a recipe.

    Raises:
        ValueError: a bad alpha, run, recipe or image; names it.
    """
    if bad := [alpha for alpha in alphas if not 0 <= alpha <= 1]:
        raise ValueError(f"--alphas: expected weights of the real pair from 0 to 1, got {bad[0]:g}")
    config, images = opened(source, sources, overrides)
    scale, rounding = config.scale, config.data.rounding
    rows = []
    for one in images:
        inputs = [blend(one.lr, downsample_image(one.sr, scale, rounding), alpha) for alpha in alphas]
        outputs = [blend(one.hr, one.sr, alpha) for alpha in alphas]
        for alpha, target in zip(alphas, outputs, strict=True):
            score = psnr(*(torch.from_numpy(luma_of(image)) for image in (target, one.hr))).item()
            rows.append({"image": one.name, "alpha": alpha, "psnr_y": score, "sharpness": sharpness(target)})
        draw_targets(out, one, scale, alphas, inputs, outputs)
    write_csv(out / "targets.csv", rows)
    print(f"images and numbers: {out}")


def opened(source: str, sources: Sequence[str], overrides: Overrides) -> tuple[Config, Iterator[Example]]:
    """The recipe, and the images with their centroids; the arguments are those of `targets`.

    Raises:
        ValueError: neither a run nor a recipe, or its teacher is missing; says what to do.
    """
    if Path(source).is_dir():
        if overrides:
            raise ValueError(f"{source}: is a run, whose recipe cannot be changed; name a recipe to change its keys")
        run = open_run(Path(source))
        return run.config, examples(run.config, run.teacher, sources, "targets", run.hr)
    config = recipes.load(source, overrides)
    if config.teacher.checkpoint == "self":
        raise ValueError(
            f"{source}: its teacher is not trained yet; add --teacher.checkpoint FILE, or name a run folder"
        )
    return config, examples(config, Path(config.teacher.checkpoint), sources, "targets")


def blend(real: Pixels, centroid: Pixels, alpha: float) -> FloatImage:
    """Their mean with weights alpha and 1 - alpha: float64, 0..255."""
    return alpha * real.astype(np.float64) + (1 - alpha) * centroid.astype(np.float64)


def luma_of(image: npt.NDArray[np.floating] | Pixels) -> FloatImage:
    """Y of [H, W, 3] on the 0..255 scale, without the offset of 16: linear, so it works for differences too."""
    return image.astype(np.float64) @ (np.array(LUMA) / 255)


def sharpness(image: FloatImage) -> float:
    """Mean squared difference of neighbouring pixels of luma, over both directions."""
    y = luma_of(image)
    return float(np.mean([np.mean(np.diff(y, axis=axis) ** 2) for axis in (0, 1)]))


def draw_targets(
    out: Path,
    one: Example,
    scale: int,
    alphas: Sequence[float],
    inputs: Sequence[FloatImage],
    outputs: Sequence[FloatImage],
) -> None:
    """Write the crops, each alone and all side by side."""
    top, left = most_detailed(one.hr, scale)
    at_hr = (slice(top, top + CROP), slice(left, left + CROP))
    at_lr = tuple(slice(part.start // scale, part.stop // scale) for part in at_hr)
    figure = Figure(figsize=(2.4 * len(alphas), 5.2), layout="constrained")
    panels = figure.subplots(2, len(alphas), squeeze=False)
    for row, (name, images, place) in zip(panels, (("target", outputs, at_hr), ("input", inputs, at_lr)), strict=True):
        for axes, alpha, image in zip(row, alphas, images, strict=True):
            crop = np.rint(image[place]).astype(np.uint8)
            write_png(out / f"{one.name}-{name}-{alpha:g}.png", crop)
            axes.imshow(crop, interpolation="nearest")
            axes.set_title(f"{name}, $\\alpha$ = {alpha:g}")
            axes.axis("off")
    save_figure(figure, out / f"{one.name}.png")
