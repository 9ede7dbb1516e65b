"""Tables in Markdown, read back."""

from hypothesis import example, given
from hypothesis import strategies as st

from eco_fast.utils.table_io import Table, read_markdown

CELL = st.text("a |-é<", max_size=4).map(str.strip)


@given(st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=4), CELL)
@example([["", ""]], "|---")
def test_a_table_is_read_as_it_was_written(lines: list[list[str]], title: str) -> None:
    columns, *rows = lines
    first, second = Table(title, columns, rows), Table("another: x", ["y"], [])
    text = f"{first.markdown()}\n{second.markdown()}\nmissing: eco seed=3\n"
    assert read_markdown(text) == [first, second]
