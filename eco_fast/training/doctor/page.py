"""`eco-fast doctor`: the page for people, or JSON for programs."""

import json
import shutil
import textwrap
import time
from dataclasses import asdict
from pathlib import Path

from eco_fast.training.doctor.examine import all_checks
from eco_fast.training.doctor.findings import Checked, Subject

WIDEST = 120
NAME_COLUMNS = 26


def doctor(folders: list[Path], device: str, *, as_json: bool) -> int:
    """Examine the machine, and say what was found.

    Args:
        folders: where runs and stores are to lie.
        device: auto, cpu, cuda or cuda:N.
        as_json: print one JSON object at the end, in place of a page.

    Returns:
        The exit code: 0 if nothing is wrong, else 1.

    Raises:
        ValueError: a folder is none.
    """
    for folder in folders:
        if not folder.is_dir():
            raise ValueError(f"{folder}: expected a folder; make it first, or name one that is there")
    subject = Subject(tuple(str(folder.absolute()) for folder in folders), device)
    began, answers = time.monotonic(), list[Checked]()
    for group, made in all_checks(subject):
        answers += made
        if not as_json:
            print(f"\n{group.name}: {group.about}")
            for one in made:
                print(_line(one), flush=True)
    seconds = round(time.monotonic() - began, 1)
    findings = [(one, finding) for one in answers for finding in one.findings]
    if as_json:
        checks = [asdict(one) for one in answers]
        print(json.dumps({"sound": not findings, "seconds": seconds, "checks": checks}, indent=2))
        return int(bool(findings))
    print(f"\n{len(answers)} checks in {seconds:.0f} s: {len(findings) or 'no'} finding{'s' * (len(findings) != 1)}")
    for number, (one, finding) in enumerate(findings, 1):
        print()
        print(_wrapped(f"{number}. {one.check}: ", finding.what))
        print(_wrapped("   why: ", finding.why))
        print(f"   mend: {finding.mend}")  # whole: it is to be copied
    return int(bool(findings))


def _line(one: Checked) -> str:
    """A check on the page: its name, how much it has found, and what it has looked up."""
    found = [f"{len(one.findings)} below"] if one.findings else []
    lead = f"  {'!!' if one.findings else 'ok'} {one.check:{NAME_COLUMNS}} "
    return _wrapped(lead, "; ".join([*found, *map(str, one.facts)]), indent=len(lead))


def _wrapped(lead: str, text: str, indent: int = 6) -> str:
    """The text behind its lead, in lines as long as the terminal's."""
    width = min(shutil.get_terminal_size().columns, WIDEST)
    more = " " * indent
    lines = textwrap.wrap(lead + text, width, subsequent_indent=more, break_on_hyphens=False, break_long_words=False)
    return "\n".join(lines)
