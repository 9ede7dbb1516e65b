"""One group of checks: `python -m eco_fast.training.doctor.group NAME [SUBJECT]`, started by `examine`.

Each line on stdout is a JSON object: {"check": NAME} begins a check, {"fact": ...} and {"finding": ...} are what it
says.
"""

import json
import os
import sys
import traceback
from dataclasses import asdict
from importlib import import_module

from eco_fast.training.doctor.findings import Check, Finding, Subject

ALONE = "python -m eco_fast.training.doctor.group {}"
RAISED = "a check that cannot be made leaves open what it looks for"


def main() -> None:
    """Make the checks of the group."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    name, *rest = sys.argv[1:]
    subject = Subject(**json.loads(rest[0])) if rest else Subject((".",), "auto")

    def say(kind: str, value: object) -> None:
        answers.write(json.dumps({kind: value}) + "\n")
        answers.flush()

    say("check", name)
    checks: list[Check] = []
    try:
        checks = import_module(f"eco_fast.training.doctor.{name}").checks(subject)
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything
        say("finding", asdict(_raised(name, error)))
    for check in checks:
        say("check", check.__name__)
        try:
            for note in check(subject):
                say(type(note).__name__.lower(), asdict(note))
        except Exception as error:  # noqa: BLE001 - as above
            say("finding", asdict(_raised(name, error)))


def _raised(group: str, error: Exception) -> Finding:
    """Its first line; the rest is for whoever runs the group alone."""
    traceback.print_exception(error)
    said = str(error).strip().partition("\n")[0]
    mend = "pip install --force-reinstall eco-fast" if isinstance(error, ImportError) else ALONE.format(group)
    return Finding(f"it raised {type(error).__name__}: {said[:300]}", RAISED, mend)


if __name__ == "__main__":
    main()
