"""Tables on the screen and in files."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from eco_fast.utils.files import write_text

WIDTH = 200  # of a table that goes into a file or another program


def print_table(table: Table) -> None:
    """Print a table as wide as the terminal, or of a fixed width where there is none."""
    console = Console()
    (console if console.is_terminal else Console(width=WIDTH)).print(table)


def write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of the same keys, NaN as an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    for row in rows:
        known = {key: value for key, value in row.items() if value is not None and value == value}  # noqa: PLR0124 - not NaN
        writer.writerow(known)
    write_text(path, text.getvalue())
