"""Confidence intervals over a few repetitions: computed, written and drawn."""

import math
import statistics
from collections.abc import Sequence

from matplotlib.axes import Axes
from scipy.stats import t

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half width of its 95 % interval by Student's t: NaN for one value and where the mean is not finite."""
    assert values, "there is no mean of nothing"
    mean = statistics.fmean(values)
    if len(values) == 1 or not math.isfinite(mean):
        return mean, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error


def format_interval(mean: float, width: float, places: int, sign: str = "") -> str:
    """As in "33.200 ± 0.248", with `sign` as format specifications have it; a NaN is left out."""
    text = "" if math.isnan(mean) else f"{mean:{sign}.{places}f}"
    return text if math.isnan(width) else f"{text} ± {width:.{places}f}"


def draw_band(axes: Axes, steps: Sequence[int], band: Sequence[tuple[float, float]], label: str, color: str) -> None:
    """Draw means over the steps, and their intervals (half widths; NaN: none) as a band around them."""
    low, high = ([mean + sign * (0 if math.isnan(width) else width) for mean, width in band] for sign in (-1, 1))
    axes.plot(steps, [mean for mean, _ in band], label=label, color=color, marker="." if len(steps) < 20 else None)
    axes.fill_between(steps, low, high, color=color, alpha=0.2)
