"""Text that people read."""


def on_one_line(text: str) -> str:
    """The text with whatever cannot be printed, line breaks too, as Python writes it: names of files may hold it."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in text)
