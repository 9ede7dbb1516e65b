"""All checks, group by group, within a minute; nothing that they do can stop or hang this process.

This module needs nothing but Python, so that it can say what is wrong with anything else.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from typing import NamedTuple

from eco_fast.training.doctor.findings import Checked, Fact, Finding, Subject

MINUTE = 58.0  # seconds that all groups have together


class Group(NamedTuple):
    """Checks that share a process."""

    name: str
    """Its module's."""
    about: str
    limit: float
    """Seconds."""


GROUPS = (
    Group("machine", "folders, locks, limits, clock", 10),
    Group("software", "versions, compilers, drivers, settings", 30),
    Group("pair", "two processes that exchange tensors", 30),
    Group("speed", "copies, and 3x3 convolutions forward and backward", 20),
    Group("ops", "what replaces a formula, against that formula", 58),  # last: at first use it compiles
)
LEAST = 2.0  # seconds for which no group is begun
SLOW = (
    "something hangs, or the machine is slow or busy; what was left of these checks was not made; what was compiled is "
    "kept, so that the next time takes less"
)
DIED = "what stops this process stops a training too"


def all_checks(subject: Subject) -> Iterator[tuple[Group, list[Checked]]]:
    """Make all checks; each group as soon as it is done."""
    ends = time.monotonic() + MINUTE
    for group in GROUPS:
        limit = min(group.limit, ends - time.monotonic())
        if limit < LEAST:
            late = _cut_short(group, "not examined: the minute is over", SLOW)
            yield group, [Checked(group.name, group.name, findings=[late])]
        else:
            yield group, checked(group, subject, limit)


def checked(group: Group, subject: Subject, limit: float) -> list[Checked]:
    """What the checks of a group say within so many seconds."""
    command = [sys.executable, "-m", "eco_fast.training.doctor.group", group.name, json.dumps(asdict(subject))]
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}  # no user's random.py in place of Python's
    try:
        process = subprocess.Popen(  # its own session: all that it starts ends with it
            command, env=environment, stdin=-3, stdout=-1, stderr=-1, start_new_session=True
        )
    except OSError as error:
        none = _cut_short(group, f"no process can be started ({error.strerror})", DIED)
        return [Checked(group.name, group.name, findings=[none])]
    try:
        out, errors = process.communicate(timeout=limit)
        late = False
    except subprocess.TimeoutExpired as error:
        late = True
        _end(process)
        out, errors = error.stdout or b"", error.stderr or b""
    except BaseException:  # Ctrl-C
        _end(process)
        raise
    answers = _read(group, out.decode(errors="replace"))
    if late:
        answers[-1].findings.append(_cut_short(group, f"no answer within {limit:.0f} s", SLOW))
    elif process.returncode:
        end = _end_of(process.returncode, errors)
        answers[-1].findings.append(_cut_short(group, f"the check ended by {end}", DIED))
    return answers


def _cut_short(group: Group, what: str, why: str) -> Finding:
    return Finding(what, why, f"python -m eco_fast.training.doctor.group {group.name}")


def _end(process: "subprocess.Popen[bytes]") -> None:
    """Kill all of its session; what waits inside the kernel is left there."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    with suppress(subprocess.TimeoutExpired):
        process.communicate(timeout=1)


def _end_of(code: int, errors: bytes) -> str:
    if code < 0:
        return signal.Signals(-code).name
    lines = errors.decode(errors="replace").strip().splitlines()
    return f"exit code {code}{f' ({lines[-1][:200]})' if lines else ''}"


def _read(group: Group, text: str) -> list[Checked]:
    """Its lines; the last one may be cut short."""
    answers = [Checked(group.name, group.name)]
    for line in text.splitlines():
        with suppress(ValueError, TypeError):
            ((kind, value),) = json.loads(line).items()
            if kind == "check":
                answers.append(Checked(group.name, value))
            else:
                answers[-1].add(Fact(**value) if kind == "fact" else Finding(**value))
    return [one for one in answers if one.check != group.name or one.findings or one is answers[-1]]
