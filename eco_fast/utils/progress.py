"""Progress bars for long work."""

from collections.abc import Collection, Iterator
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

Item = TypeVar("Item")


def progress(items: Collection[Item], label: str) -> Iterator[Item]:
    """Iterate with a bar on a terminal; in a log file only the finished bar remains."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns) as bar:
        yield from bar.track(items, total=len(items), description=label)
