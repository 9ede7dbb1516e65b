"""Statistics over a few repetitions."""

import math
import statistics
from collections.abc import Sequence

from scipy.stats import t

CONFIDENCE = 0.95


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half width of its 95 % interval by Student's t: NaN for a single value and for an infinite mean."""
    assert values, "there is no mean of nothing"  # noqa: S101
    mean = statistics.fmean(values)
    if len(values) == 1 or math.isinf(mean):
        return mean, math.nan
    error = statistics.stdev(values) / math.sqrt(len(values))
    return mean, float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * error
