"""Declaring commands, and the options that several of them share."""

import argparse
import difflib
import re
import textwrap
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any, NoReturn

Option = tuple[str, dict[str, Any]]
"""What `add_argument` takes: a name, and keyword args."""
NAME_WIDTH = 16  # of the column of commands


class Help(argparse.HelpFormatter):
    """Help with the names of the commands in a column of their own; text with line ends, an example, stays as it is."""

    def __init__(self, prog: str, **settings: Any) -> None:
        super().__init__(prog, **settings)
        self._action_max_length = NAME_WIDTH

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return text if "\n" in text else super()._fill_text(text, width, indent)

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(text, width, break_on_hyphens=False)


class Parser(argparse.ArgumentParser):
    """A parser whose complaints are one sentence, and which can wait for its options until they are needed.

    Attributes:
        waiting: adds options when they are needed first.
        gone: what to say of an option that is there no longer; may be a function of the word that follows it.
        nearest: an option that an unknown one may have meant.
        adopt: adds an option that is not known before it is given, and says whether it did.
    """

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **{"formatter_class": Help, **settings})
        self._negative_number_matcher = re.compile(r"-\.?\d")  # -1e-3 too, as from Python 3.14 on
        self.waiting: Callable[[Parser], None] | None = None
        self.gone: dict[str, str | Callable[[str], str]] = {}
        self.nearest: Callable[[str], str | None] = self.nearest_option
        self.adopt: Callable[[str], bool] = lambda _: False

    def fill(self) -> None:
        """Add the options that wait."""
        waiting, self.waiting = self.waiting, None
        if waiting:
            waiting(self)

    def format_help(self) -> str:
        """All the help."""
        self.fill()
        return super().format_help()

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As in argparse, but an unknown option is named before anything else is complained of."""
        self.fill()
        words = [] if self._subparsers else list(args)
        for word, following in pairwise([*words, ""]):
            name, _, value = word.partition("=")
            if word == "--":
                break
            if word.startswith("--") and name not in self._option_string_actions and not self.adopt(name):
                raise ValueError(self.unknown(name, value or following))
        return super().parse_known_args(args, namespace)

    def unknown(self, name: str, following: str) -> str:
        """What to say of an option that there is not."""
        if name in self.gone:
            reason = self.gone[name]
            return f"{name} {reason if isinstance(reason, str) else reason(following)}"
        near = self.nearest(name)
        return f"unknown option {name} ({f'did you mean {near}?' if near else f'see `{self.prog} --help`'})"

    def nearest_option(self, name: str) -> str | None:
        """The option whose name is most like this one."""
        return next(iter(difflib.get_close_matches(name, self._option_string_actions, n=1, cutoff=0.75)), None)

    def error(self, message: str) -> NoReturn:
        """Raise the message, in place of a page of help and the end of the program."""
        raise ValueError(f"{message.removeprefix('argument ')}; see `{self.prog} --help`")

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is None or value in action.choices:
            return
        if new := getattr(action, "renamed", {}).get(value):
            raise ValueError(f"{'/'.join(action.option_strings) or action.dest} {value} is called {new} now")
        known = [str(choice) for choice in action.choices]
        close = difflib.get_close_matches(str(value), known, n=1)
        hint = f" (did you mean {close[0]}?)" if close else ""
        expected = " or ".join(filter(None, [", ".join(known[:-1]), known[-1]]))
        raise argparse.ArgumentError(action, f"expected {expected}, got {str(value)!r}{hint}")


class Commands:
    """The commands of a parser.

    Args:
        parser: theirs.
        kind: what they are; the parsed arguments keep the command's name under it.
        renamed: what commands of old are called now.
    """

    def __init__(self, parser: Parser, kind: str, renamed: dict[str, str] | None = None) -> None:
        self.group = parser.add_subparsers(dest=kind, required=True, metavar=kind.upper(), parser_class=Parser)
        vars(self.group)["renamed"] = renamed or {}

    def add(
        self,
        name: str,
        summary: str,
        example: str,
        run: Callable[[argparse.Namespace], int | None] | None,
        *options: Option,
        **settings: Any,
    ) -> Parser:
        """Add a command, whose help ends with an example; `run` may return an exit code, and is None above commands."""
        command = self.group.add_parser(
            name, help=summary, description=summary, epilog=f"example:\n  {example}", **settings
        )
        command.set_defaults(run=run)
        for option_name, option_settings in options:
            command.add_argument(option_name, **option_settings)
        return command


def option(name: str, metavar: str | tuple[str, ...] | None, text: str, **settings: Any) -> Option:
    """An argument with a value and its help; `settings` are those of `add_argument`."""
    return name, {"metavar": metavar, "help": text, **settings}


def flag(name: str, text: str) -> Option:
    """An option without a value."""
    return name, {"action": "store_true", "help": text}


TILE = "LR pixels a side of a tile; bounds the memory (256; 1536 for RCAN, which takes means over an image)"
WITH_KEYS: dict[str, Any] = {"formatter_class": partial(Help, max_help_position=8), "add_help": False}
"""Settings of a command that takes the keys of a recipe: help below the long names, and help of its own."""
NETWORK = (
    option("--device", None, "auto, cpu, cuda or cuda:N (%(default)s)", default="auto"),
    option("--tile", "N", TILE, type=int),
)
"""Where and in what pieces a network runs."""
CONVENTION = "MATLAB's convention of the LR images (%(default)s)"
DEGRADATION = (
    option("--scale", None, "upscaling factor", type=int, required=True, choices=(2, 3, 4, 8)),
    option("--rounding", None, CONVENTION, choices=("uint8", "im2double"), default="uint8"),
)
"""How LR images are made."""


def noise_sigma(text: str) -> Option:
    """The option that adds noise to LR."""
    return option("--noise-sigma", "S", text, type=float, default=0.0)


def checked_tile(args: argparse.Namespace) -> int | None:
    """The given tile.

    Raises:
        ValueError: it is empty.
    """
    tile: int | None = args.tile
    if tile is not None and tile < 1:
        raise ValueError(f"--tile: expected at least 1 pixel, got {tile}")
    return tile
