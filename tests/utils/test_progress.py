"""The progress line in a terminal of 80 columns, and in a file, by a clock of its own."""

import io
import re

import pytest
from rich.console import Console

from eco_fast.utils.progress import ProgressLine, duration_in_words, track


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def terminal(width: int = 80) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def lines_of(console: Console) -> list[str]:
    """What was written, line by line, without what moves the cursor."""
    return re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", shown(console)))


def test_a_file_hears_of_the_progress_once_a_minute_at_most(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    heard = []
    with ProgressLine(lambda: ["short"], clock=clock) as line:
        for clock.now in range(0, 600, 7):
            line.report(f"at {clock.now}")
            if "at" in capsys.readouterr().out:
                heard.append(clock.now)
    assert heard == [63, 126, 189, 252, 315, 378, 441, 504, 567]


def test_a_file_hears_nothing_of_it_while_other_things_are_said(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with ProgressLine(lambda: ["short"], clock=clock) as line:
        for clock.now in range(0, 600, 10):
            line.report("progress")
            if clock.now % 50 == 0:
                line.say("validation")
    assert set(capsys.readouterr().out.splitlines()) == {"validation"}


def test_a_terminal_shows_one_line_below_what_is_said(clock: Clock) -> None:
    console = terminal()
    with ProgressLine(lambda: ["step 3/9", "loss 1.5"], console, clock) as line:
        clock.now = 1000.0
        line.report("for a file")
        line.say("validation 30 dB")
    lines = lines_of(console)
    assert lines[:2] == ["validation 30 dB", "step 3/9  loss 1.5"]
    assert set(lines[2:]) == {"step 3/9  loss 1.5", ""}
    assert shown(console).endswith("\r\x1b[1A\x1b[2K")  # nothing is left of the line


@pytest.mark.parametrize("width", [20, 40, 80])
def test_what_has_no_room_is_left_out(width: int, clock: Clock) -> None:
    console = terminal(width)
    parts = ["student 120000/300000"[: width - 5], *(f"part {index}" for index in range(30))]
    with ProgressLine(lambda: parts, console, clock):
        pass
    lines = [line for line in lines_of(console) if line]
    assert lines
    assert all(len(line) < width for line in lines)
    assert all(line.startswith(parts[0]) for line in lines)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (35.2, "35 s"), (60.0, "1.0 min"), (5400.0, "1.5 h"), (45720.0, "12.7 h"), (293760.0, "3.4 d")],
)
def test_durations_are_short(seconds: float, words: str) -> None:
    assert duration_in_words(seconds) == words


def test_a_file_gets_no_bar(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(track(iter("abc"), "work", 3)) == ["a", "b", "c"]
    assert capsys.readouterr().out == ""
