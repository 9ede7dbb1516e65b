"""HTML of Python values: a text is escaped wherever it goes, unless it is `Html` already."""

import html
from collections.abc import Sequence

LONG = 45  # characters of a cell that may be broken
VOID = ("img", "input", "link", "meta")
"""Elements without an end."""


class Html(str):
    """Text that is HTML already."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | bool) -> Html:
    """An element with its children in order.

    Args:
        name: of the element.
        children: text, which is escaped, or `Html`.
        attributes: by name, with _ for - (and at its end for a word of Python's: class_); True: one without a value,
            False: none.
    """
    given = "".join(
        f" {key.rstrip('_').replace('_', '-')}" + ("" if value is True else f'="{html.escape(str(value))}"')
        for key, value in attributes.items()
        if value is not False
    )
    start = f"<{name}{given}>"
    return Html(start if name in VOID else f"{start}{joined(children)}</{name}>")


def joined(children: Sequence[str]) -> Html:
    """Several children without an element around them."""
    return Html("".join(child if isinstance(child, Html) else html.escape(child) for child in children))


def text_table(columns: Sequence[str], rows: Sequence[Sequence[str]], label: str) -> Html:
    """A table that scrolls by itself where the screen is too narrow; the first cell of a row is its header."""
    head = element("tr", *(element("th", column, scope="col") for column in columns))
    body = [
        element("tr", element("th", first, scope="row", class_=_width(first)), *(_cell(text) for text in rest))
        for first, *rest in rows
    ]
    whole = element("table", element("thead", head), element("tbody", *body))
    return element("div", whole, class_="scroll", role="region", aria_label=label, tabindex="0")


def section(title: str, *children: str) -> Html:
    """A part of the page under a heading."""
    return element("section", element("h2", title), *children)


def folded(title: str, text: str) -> Html:
    """A long text that is shown when it is asked for."""
    return element("details", element("summary", title), element("pre", text, tabindex="0"))


def _cell(text: str) -> Html:
    return element("td", text, class_=_width(text))


def _width(text: str) -> str | bool:
    return len(text) > LONG and "long"
