"""Tables on the screen, in Markdown and in CSV."""

import csv
import io
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich import table as rich_table
from rich.console import Console

from eco_fast.utils.files import write_text

WIDTH = 200  # of a table that goes into a file or another program


@dataclass(frozen=True)
class Table:
    """A table for people.

    Attributes:
        title: stands above it.
        columns: the header.
        rows: the cells, as many as columns; printed as they are.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self, *, lines: bool = False) -> None:
        """Print, as wide as the terminal or `WIDTH`; `lines` separates rows that may be wrapped."""
        table = rich_table.Table(title=self.title, show_lines=lines)
        for column in self.columns:
            table.add_column(column, overflow="fold")  # a long name is not cut
        for row in self.rows:
            table.add_row(*row)
        console = Console(markup=False, emoji=False)
        if not console.is_terminal:
            console.width = WIDTH
        console.print(table)

    def markdown(self) -> str:
        """The title as a sentence, and the table below it."""
        lines = [[cell.replace("|", "\\|") for cell in line] for line in (self.columns, *self.rows)]
        header, *rows = (f"| {' | '.join(line)} |" for line in lines)
        return "\n".join([f"{self.title}.", "", header, "|" + "---|" * len(self.columns), *rows, ""])


def read_markdown(text: str) -> list[Table]:
    """The tables that `Table.markdown` has written, of cells without line ends."""
    lines, tables = text.split("\n"), []
    for number, line in enumerate(lines):
        if re.fullmatch(r"\|(---\|)+", line):  # a title ends in a period, a row begins with a blank
            title, _, header = lines[number - 3 : number]
            rows = itertools.takewhile(lambda row: row.startswith("|"), lines[number + 1 :])
            tables.append(Table(title.removesuffix("."), _cells_of(header), [_cells_of(row) for row in rows]))
    return tables


def _cells_of(line: str) -> list[str]:
    return [cell.replace("\\|", "|") for cell in line.removeprefix("| ").removesuffix(" |").split(" | ")]


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys for programs, None and NaN as empty cells."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        known = {key: value for key, value in row.items() if value is not None and value == value}  # noqa: PLR0124 - not NaN
        writer.writerow(known)
    write_text(path, text.getvalue())
