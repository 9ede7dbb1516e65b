"""The figure of `eco-fast bench`."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eco_fast.training.bench.results import UNIT, changes_between, measured
from eco_fast.training.bench.tables import PART
from eco_fast.training.bench.timing import Spread
from eco_fast.training.figures import save_figure

BAR = 0.35
INCHES_A_CASE = 0.8
NAME = 36  # characters in a line of a case's name


def draw_bench(path: Path, results: Mapping[str, Any], then: Mapping[str, Any] | None) -> None:
    """Per case the parts of its step, the bare network, the field's loop; and the share of the peak, then and now."""
    cases = measured(results)
    figure = Figure(figsize=(13, 2 + INCHES_A_CASE * len(cases)), layout="constrained")
    figure.suptitle(results["machine"]["device"], fontsize="medium")
    ways, shares = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    _draw_ways(ways, cases)
    places = range(len(cases))
    _draw_spreads(shares, places, [case["figures"][UNIT] for case in cases], "now" if then else None)
    if then is not None:
        at = {case["name"]: place for place, case in enumerate(cases)}
        changes = changes_between(then, results)
        _draw_spreads(shares, [at[one.name] + BAR / 2 for one in changes], [one.then for one in changes], "then")
        shares.legend()
    shares.set(xlabel="share of the measured peak", xlim=(0, None))
    ways.set_yticks(places, [textwrap.fill(case["name"], NAME) for case in cases], fontsize="small")
    ways.invert_yaxis()
    for axes in (ways, shares):
        axes.grid(axis="x", alpha=0.3)
    figure.legend(
        *ways.get_legend_handles_labels(), loc="outside lower center", ncols=8, fontsize="small", frameon=False
    )
    save_figure(figure, path)


def _draw_ways(axes: Axes, cases: Sequence[Mapping[str, Any]]) -> None:
    """In the unit of the whole step: its parts, and marks where the others end."""
    parts = list(dict.fromkeys(name for case in cases for name in case["figures"] if name.startswith(PART)))
    ends = [0.0] * len(cases)
    for part in parts:
        widths = [
            case["figures"][part].median / case["figures"]["ms"].median if part in case["figures"] else 0.0
            for case in cases
        ]
        axes.barh(range(len(cases)), widths, BAR, left=ends, label=part.removeprefix(PART))
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    bare = [1 / case["figures"]["whole_over_bare"].median for case in cases]
    axes.scatter(bare, range(len(cases)), marker="|", s=300, color="black", label="bare network", zorder=3)
    against = {place: case["figures"].get("field_over_whole") for place, case in enumerate(cases)}
    known = {place: one.median for place, one in against.items() if one is not None}
    axes.scatter(list(known.values()), list(known), marker="D", color="grey", label="the field's loop", zorder=3)
    axes.set(xlabel="time of a step, in that of the whole step", xlim=(0, None))


def _draw_spreads(axes: Axes, places: Sequence[float], figures: Sequence[Spread], label: str | None) -> None:
    """Medians, with lines from quartile to quartile."""
    medians = [one.median for one in figures]
    below, above = ([abs(one[side] - one.median) for one in figures] for side in (1, 2))
    axes.errorbar(medians, places, xerr=(below, above), fmt="o", capsize=4, label=label)
