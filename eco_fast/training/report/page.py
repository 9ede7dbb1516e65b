"""The page itself: its frame, its style and script, and how it is written without harm to a run."""

import json
from collections.abc import Callable, Mapping
from importlib import resources
from pathlib import Path
from typing import Any

from eco_fast.training.report.elements import Html, element, joined
from eco_fast.utils.files import write_atomically

REPORT = "report.html"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
"""The browser itself refuses whatever is not on the page."""


def write_page(folder: Path, title: str, sections: list[Html], data: Mapping[str, Any]) -> Path:
    """Write FOLDER/report.html.

    Args:
        folder: of the run or comparison.
        title: of the page.
        sections: from the top down.
        data: what the script draws.

    Returns:
        The path of the page.
    """
    head = [
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("title", title),
        element("link", rel="icon", href="data:,"),
        element("style", _own("page.css")),
    ]
    # What ends a script, or begins a comment in it, begins with this sign.
    values = Html(json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c"))
    scripts = [
        element("script", values, type="application/json", id="data"),
        *(element("script", _own(name)) for name in ("charts.js", "crops.js")),
    ]
    body = element("body", element("main", *sections), *scripts)
    whole = joined([Html("<!doctype html>\n"), element("html", element("head", *head), body, lang="en"), "\n"])
    path = folder / REPORT
    # Names of files may hold what is no character.
    write_atomically(path, lambda file: file.write(whole.encode(errors="backslashreplace")))
    return path


def report_if_possible(write: Callable[[Path], Path], folder: Path) -> None:
    """Write the report that something ends with, and say where it is; or why there is none."""
    try:
        print(f"report: {write(folder)}", flush=True)
    except Exception as error:  # noqa: BLE001 - whatever it is, the results are there, and must not seem lost
        reason = " ".join(str(error).split()) or type(error).__name__
        print(f"no report: {reason}; `eco-fast report {folder}` writes it", flush=True)


def _own(name: str) -> Html:
    return Html(resources.files(__package__).joinpath(name).read_text(encoding="utf-8"))
