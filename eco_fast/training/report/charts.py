"""The curves of a report: their data, which the page's own script draws; few enough points for one page."""

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eco_fast.training.report.elements import Html, element

MOST_POINTS = 30_000  # of all curves of a page
LEAST_POINTS = 50  # of one of them

Point = tuple[float, ...]
"""Step and value; and, of a mean over several runs, both ends of its interval."""


@dataclass(frozen=True)
class Series:
    """One curve.

    Attributes:
        name: in the legend.
        points: in the order of their steps.
        shown: at first; the legend shows and hides it.
    """

    name: str
    points: Sequence[Point]
    shown: bool = True


@dataclass(frozen=True)
class Chart:
    """Some curves over the steps, with one axis."""

    label: str
    series: Sequence[Series]


def curve(rows: Iterable[Mapping[str, Any]], key: str) -> list[Point]:
    """The finite values that rows of metrics.jsonl have under a key."""
    found = ((row["step"], row.get(key)) for row in rows)
    return [(step, value) for step, value in found if value is not None and math.isfinite(value)]


def drawn(charts: Iterable[Chart]) -> tuple[Html, list[dict[str, Any]]]:
    """The places of the charts that have any point, and the data that the page's script draws there."""
    full = [chart for chart in charts if any(series.points for series in chart.series)]
    every = [series for chart in full for series in chart.series if series.points]
    limit = max(MOST_POINTS // max(len(every), 1), LEAST_POINTS)
    data = [
        {
            "label": chart.label,
            "series": [
                {
                    "name": series.name,
                    "colour": number,
                    "shown": series.shown,
                    "points": [_rounded(point) for point in thinned(series.points, limit)],
                }
                for number, series in enumerate(chart.series)  # which has the same colour in every chart
                if series.points
            ],
        }
        for chart in full
    ]
    places = [element("figure", element("figcaption", chart.label), class_="chart") for chart in full]
    if not places:
        return element("p", "There is no curve yet: the first row of metrics.jsonl is not written."), []
    thin = any(len(series.points) > limit for series in every)
    notes = [
        element("p", f"Long curves are drawn by {limit} points: of each stretch the least and the greatest.")
    ] * thin
    other = element("noscript", "A script of this page draws the curves; curves.png beside it has them too.")
    return element("div", other, *places, *notes, class_="charts"), data


def thinned(points: Sequence[Point], limit: int) -> list[Point]:
    """At most so many points: of each of equally many in a row the least and the greatest, and the first and last."""
    if len(points) <= limit:
        return list(points)
    stretches = (limit - 2) // 2
    edges = [1 + number * (len(points) - 2) // stretches for number in range(stretches + 1)]
    kept = [points[0]]
    for begin, end in itertools.pairwise(edges):
        places = range(begin, end)
        ends = {min(places, key=lambda place: points[place][1]), max(places, key=lambda place: points[place][1])}
        kept += [points[place] for place in sorted(ends)]
    return [*kept, points[-1]]


def _rounded(point: Point) -> list[float]:
    step, *values = point
    return [step, *(float(f"{value:.6g}") for value in values)]
