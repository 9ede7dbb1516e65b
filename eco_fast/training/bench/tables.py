"""What `eco-fast bench` prints."""

from collections.abc import Mapping
from typing import Any

from eco_fast.training.bench.results import UNIT, Change, changes_between, measured
from eco_fast.training.bench.timing import Spread
from eco_fast.utils.table_io import Table

PART = "ms_"
"""How the names of those figures begin that are a part of the step's time."""


def tables_of(results: Mapping[str, Any]) -> list[Table]:
    """All cases, and the parts of their steps."""
    cases = measured(results)
    title = f"{results['machine']['device']}: medians over the rounds ({len(cases[0]['rounds'])}), and their quartiles"
    header = ("", "ms a step", "patches/s", "of the peak", "against bare", "field against it", "waiting", "memory")
    parts = list(dict.fromkeys(part for case in cases for part in case["figures"] if part.startswith(PART)))
    return [
        Table(title, header, [_row(case) for case in cases]),
        Table(
            "Parts of a step in ms, and their share of it",
            ("", *(part.removeprefix(PART) for part in parts)),
            [[case["name"], *(_part(case["figures"], part) for part in parts)] for case in cases],
        ),
    ]


def _row(case: Mapping[str, Any]) -> list[str]:
    figures: Mapping[str, Spread] = case["figures"]
    return [
        case["name"],
        _shown(figures["ms"], ".4g"),
        f"{figures['patches_per_second'].median:.4g}",
        _shown(figures[UNIT], ".1%"),
        _shown(figures["whole_over_bare"], ".3f"),
        _shown(figures["field_over_whole"], ".2f") if "field_over_whole" in figures else case["field"],
        f"{figures['waiting'].median:.1%}",
        f"{case['memory_gb']:.2f} GB",
    ]


def _part(figures: Mapping[str, Spread], part: str) -> str:
    if part not in figures:
        return ""
    return f"{figures[part].median:.3g} ({figures[part].median / figures['ms'].median:.1%})"


def _shown(figure: Spread, form: str) -> str:
    median, lower, upper = (format(value, form) for value in figure)
    return f"{median} ({lower} to {upper})"


def show_changes(then: Mapping[str, Any], now: Mapping[str, Any], file: str) -> None:
    """Print how fast the cases of two days are in the unit of their machine's peak.

    Args:
        then: what `read_bench` has read.
        now: the results of this day.
        file: name of the earlier ones.
    """
    changes = changes_between(then, now)
    rows = [[one.name, _shown(one.then, ".1%"), _shown(one.now, ".1%"), _faster(one)] for one in changes]
    if rows:
        Table(f"Share of the machine's peak, in {file} and now", ("", "then", "now", "faster by"), rows).show()
    compared = {one.name for one in changes}
    if alone := [case["name"] for case in measured(now) if case["name"] not in compared]:
        print(f"{file}: has {len(alone)} of these cases not, or with another network or batch size; first {alone[0]}")
    devices = [results["machine"]["device"] for results in (then, now)]
    if devices[0] != devices[1]:
        print(f"another machine: {devices[0]} then, {devices[1]} now; shares of the peak compare, times do not")


def _faster(change: Change) -> str:
    return f"{change.relative:+.1%}{'' if change.is_clear else ' (quartiles meet)'}"
