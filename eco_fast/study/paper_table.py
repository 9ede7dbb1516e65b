"""`eco-fast table`: the results of finished runs in the layout of the paper's tables, beside the paper's numbers.

DIR/table.md     the table, for people
DIR/table.csv    the same with all digits
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from eco_fast.config import Config
from eco_fast.config.paper import IN_PAPER, nearest, network_of, paper_scores
from eco_fast.data.objective import OBJECTIVES
from eco_fast.study.confidence import format_interval, interval
from eco_fast.study.run_results import Result, by_recipe, read_results
from eco_fast.utils.files import write_text
from eco_fast.utils.table_io import Table, write_csv

DECIMALS = {"psnr_y": 2, "ssim_y": 4}  # as in the paper
SCORE_COLUMNS = {"psnr_y": "PSNR-Y", "ssim_y": "SSIM-Y"}
TITLE = "PSNR-Y (dB) / SSIM-Y; of several seeds, their mean ± half of its 95 % interval"
Cell = dict[str, tuple[float, float]]
"""By measure (psnr_y, ssim_y) the mean, and half the width of its interval or NaN."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table."""

    scale: int
    model: str
    method: str
    source: str
    """The runs, or the paper's row."""
    seeds: int | None = None
    """Runs that the cells are means over; 0 for a missing run, None for the paper."""
    recipe: str = ""
    """The nearest shipped recipe."""
    differs: str = ""
    """The keys that differ from it, with their values."""
    cells: dict[str, Cell] = field(default_factory=dict)
    """By set."""

    def cells_of(self, names: Sequence[str]) -> list[str]:
        """What people read, of some sets."""
        sets = [
            " / ".join(
                format_interval(*value, DECIMALS[measure]) for measure, value in self.cells.get(name, {}).items()
            )
            for name in names
        ]
        return [
            f"x{self.scale}",
            self.model,
            self.method,
            self.source,
            *(["missing"] * len(sets) if self.seeds == 0 else sets),
            ": ".join(part for part in (self.recipe, self.differs) if part),
        ]

    def values_of(self, names: Sequence[str]) -> dict[str, Any]:
        """What programs read, of some sets: the mean of each measure, and half the interval's width."""
        keys = ("scale", "model", "method", "source", "seeds", "recipe", "differs")
        values = {key: getattr(self, key) for key in keys}
        for name, (measure, title) in itertools.product(names, SCORE_COLUMNS.items()):
            mean, width = self.cells.get(name, {}).get(measure, (math.nan, math.nan))
            values |= {f"{name} {title}": "missing" if self.seeds == 0 else mean, f"{name} {title} ±": width}
        return values


def make_table(folders: Sequence[Path], out: Path | None = None) -> None:
    """Print the table of some runs, and write it to a folder if one is named.

    An unfinished run has a row of its own that says so, and is excluded from the means.

    Args:
        folders: of the runs.
        out: folder for table.md and table.csv; None: print alone.

    Raises:
        ValueError: a folder is no run, or runs cannot stand in one table; names them.
    """
    results = read_results(folders)
    found = dict.fromkeys(name for result in results for name in result.names)
    names = sorted(found, key=lambda name: list(IN_PAPER).index(name.lower()) if name.lower() in IN_PAPER else math.inf)
    rows = list(_rows(results, names))
    columns = ["scale", "model", "method", "results of", *names, "nearest recipe, and what differs"]
    table = Table(TITLE, columns, [row.cells_of(names) for row in rows])
    table.show(lines=True)
    if out is not None:
        write_text(out / "table.md", table.markdown())
        write_csv(out / "table.csv", [row.values_of(names) for row in rows])
        print(f"written to {out / 'table.md'} and {out / 'table.csv'}")


def _rows(results: Sequence[Result], names: Sequence[str]) -> Iterator[Row]:
    """Each group of seeds, its missing runs, and the paper's row under the last group that it belongs to."""
    groups = sorted(by_recipe(results), key=lambda group: _order(group[0]))
    papers = [_paper(group[0].recipe, names) for group in groups]
    for group, paper, following in zip(groups, papers, [*papers[1:], None], strict=True):
        yield from _own(group, names)
        if paper is not None and paper != following:
            yield paper


def _order(result: Result) -> tuple[int, str, int, str]:
    recipe = result.recipe
    return recipe.scale, _model(recipe), OBJECTIVES.index(recipe.objective.name), result.network


def _own(group: Sequence[Result], names: Sequence[str]) -> Iterator[Row]:
    """The row of the finished runs of a recipe, and a row for each of its runs that is not."""
    recipe, closest = group[0].recipe, nearest(group[0].recipe)
    differs = "no shipped recipe has this scale, network and objective"
    if closest:
        differs = ", ".join(f"{key}={functools.reduce(getattr, key.split('.'), recipe)}" for key in closest.differing)
    row = Row(
        scale=recipe.scale,
        model=_model(recipe),
        method=recipe.objective.name + (" (baseline)" if group[0].network == "baseline" else ""),
        source="",
        recipe=closest.name if closest else "",
        differs=differs,
    )
    finished = [result for result in group if result.sets is not None]
    if finished:
        seeds = f"{len(finished)}{f' of {len(group)}' if len(finished) < len(group) else ''} seeds: "
        source = (seeds if len(group) > 1 else "") + ", ".join(str(result.folder) for result in finished)
        cells = {
            name: {measure: interval([one.score(name, measure) for one in finished]) for measure in SCORE_COLUMNS}
            for name in names
            if name in (finished[0].sets or {})
        }
        yield replace(row, source=source, seeds=len(finished), cells=cells)
    for result in group:
        if result.sets is None:
            yield replace(row, source=f"{result.folder}, not finished", seeds=0)


def _model(recipe: Config) -> str:
    """The architecture, and the keys that are not its defaults."""
    default = type(recipe.model)().model_dump()
    changed = [f"{key}={value}" for key, value in network_of(recipe).items() if value != default[key]]
    return " ".join([recipe.model.name, *changed])


def _paper(recipe: Config, names: Sequence[str]) -> Row | None:
    """The paper's row for the nearest recipe; None if the paper has no score on any of the sets."""
    closest = nearest(recipe)
    if closest is None:
        return None
    cells: dict[str, Cell] = {
        name: {measure: (value, math.nan) for measure, value in zip(SCORE_COLUMNS, score, strict=True)}
        for name, score in paper_scores(closest.recipe, names).items()
    }
    if not cells:
        return None
    return Row(
        scale=recipe.scale,
        model=_model(recipe),
        method=recipe.objective.name,
        source=f"paper: {closest.recipe.paper.row}",
        recipe=closest.name,
        cells=cells,
    )
