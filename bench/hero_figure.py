r"""The figure of the README, from a quick-start run that validates often and scores the running average of its weights.

    eco-fast train quickstart --run runs/hero --train.validate_every 25 --train.ema_decay 0.95 \
        --data.monitor builtin:test
    python -m bench.hero_figure runs/hero docs/hero.png

Left: PSNR-Y on the three test photographs over the steps, ECO and its baseline. Right: the part of one of them that has
most detail, as LR, bicubic, SR and HR, with the scores of the whole image.
"""

import argparse
import json
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eco_fast import load_network, super_resolve
from eco_fast.data.folders import builtin_images
from eco_fast.data.images import Pixels, read_image
from eco_fast.data.resize import downsample_image, to_pixels, to_tensor, upsample
from eco_fast.evaluation.metrics import read_scores, score
from eco_fast.training.crops import CROP, most_detailed
from eco_fast.training.figures import save_figure

SET = "builtin:test"
PHOTOGRAPH = "builtin/coffee.png"
SCALE = 2


def main() -> None:
    """Draw the figure of a run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="the run folder")
    parser.add_argument("out", type=Path, help="a PNG file")
    given = parser.parse_args()
    figure = Figure(figsize=(12, 2.9), layout="constrained")
    curves, *crops = figure.subplots(1, 5, width_ratios=(1.5, 1, 1, 1, 1))
    draw_curves(curves, given.run)
    for axes, (title, pixels) in zip(crops, panels(given.run).items(), strict=True):
        axes.imshow(pixels, interpolation="nearest")
        axes.set_title(title, fontsize=10)
        axes.axis("off")
    save_figure(figure, given.out)


def draw_curves(axes: Axes, run: Path) -> None:
    """PSNR-Y over the steps."""
    for label, folder in {"ECO": run, "baseline": run / "baseline"}.items():
        rows = map(json.loads, (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        points = [(row["step"], row[key]) for row in rows if (key := f"psnr_y/{SET}") in row]
        axes.plot(*zip(*points, strict=True), label=label)
    axes.set(xlabel="step", ylabel="PSNR-Y (dB)", ylim=(31.5, 33.7))
    axes.set_title("three held-out photographs, x2", fontsize=10)
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")


def panels(run: Path) -> dict[str, Pixels]:
    """The crops, by title."""
    hr = read_image(dict(builtin_images("test"))[PHOTOGRAPH])
    lr = downsample_image(hr, SCALE, "uint8")
    bicubic = to_pixels(upsample(to_tensor(lr)[None], SCALE, "uint8")[0])
    sr = super_resolve(load_network(run / "checkpoints" / "last.safetensors", "cpu"), lr)
    top, left = most_detailed(hr, SCALE)
    part = (slice(top, top + CROP), slice(left, left + CROP))
    small = (slice(top // SCALE, (top + CROP) // SCALE), slice(left // SCALE, (left + CROP) // SCALE))
    return {
        "LR": lr[small],
        f"bicubic {psnr(bicubic, hr):.2f} dB": bicubic[part],
        f"ECO {psnr(sr, hr):.2f} dB": sr[part],
        "HR": hr[part],
    }


def psnr(image: Pixels, hr: Pixels) -> float:
    """PSNR-Y, in dB."""
    return read_scores({"": score(to_tensor(image), to_tensor(hr), border=SCALE)})[""].psnr_y


if __name__ == "__main__":
    main()
