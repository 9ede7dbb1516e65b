"""What a terminal shows of work that goes on: a bar, or a line at its foot. A file gets neither."""

import time
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import Self, TypeVar

from rich import progress
from rich.console import Console
from rich.live import Live
from rich.text import Text

T = TypeVar("T")
QUIET = 60.0  # seconds without a word after which a file is told how far the work is
UNITS = (("d", 86400.0), ("h", 3600.0), ("min", 60.0))


def track(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """The items, with a progress bar in a terminal; `total` is their number, where they do not know it."""
    return progress.track(items, description, total, disable=not Console().is_terminal)


class ProgressLine:
    """Says how far some work is: at the foot of a terminal, below whatever is printed; elsewhere once a minute at most.

    Args:
        parts: makes the line of a terminal, the most important parts first; what has no room is left out.
        console: the terminal, or where the lines go.
        clock: seconds, which go on.
    """

    def __init__(
        self,
        parts: Callable[[], Sequence[str]],
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts, self._clock, self._spoke = parts, clock, clock()
        self._console = console or Console()
        self._live: Live | None = None
        if self._console.is_terminal and not self._console.is_dumb_terminal:
            self._live = Live(get_renderable=self._line, console=self._console, refresh_per_second=2, transient=True)

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def report(self, line: str) -> None:
        """Print the whole line, where no terminal shows the short one and nothing has been said for a minute."""
        if self._live is None and self._clock() - self._spoke >= QUIET:
            self.say(line)

    def say(self, line: str) -> None:
        """Print a line that is to be kept."""
        print(line, flush=True)
        self._spoke = self._clock()

    def _line(self) -> Text:
        line = ""
        for part in self._parts():
            if len(longer := f"{line}  {part}".strip()) < self._console.width:  # a full line would move the cursor
                line = longer
        return Text(line, no_wrap=True, overflow="crop")


def duration_in_words(seconds: float) -> str:
    """For people: 35 s, 2.5 min, 12.7 h, 3.4 d."""
    for unit, size in UNITS:
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
