"""Declaring commands, and the options that several of them share."""

import argparse
from collections.abc import Callable
from typing import Any, NoReturn

Option = tuple[str, dict[str, Any]]
"""What `add_argument` takes: a name, and keyword args."""


class Commands:
    """The commands of a parser.

    Args:
        parser: theirs.
        kind: what they are; the parsed arguments keep the command's name under it.
    """

    def __init__(self, parser: argparse.ArgumentParser, kind: str) -> None:
        self.group = parser.add_subparsers(dest=kind, required=True, metavar=kind.upper())

    def add(
        self, name: str, summary: str, example: str, run: Callable[[argparse.Namespace], None] | None, *options: Option
    ) -> argparse.ArgumentParser:
        """Add a command, whose help ends with an example; `run` is None where it has commands of its own."""
        command: argparse.ArgumentParser = self.group.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(run=run)
        for option_name, settings in options:
            command.add_argument(option_name, **settings)
        return command

    def rename(self, old: str, new: str) -> None:
        """Refuse a command that has another name now, whatever follows it."""

        def refuse(_: argparse.Namespace) -> NoReturn:
            raise ValueError(f"{old} is called {new} now")

        gone = self.group.add_parser(old, prefix_chars="\0", add_help=False)  # so that no argument is an option
        gone.add_argument("rest", nargs="*")
        gone.set_defaults(run=refuse)


def option(name: str, metavar: str | tuple[str, ...] | None, text: str, **settings: Any) -> Option:
    """An argument with a value and its help; `settings` are those of `add_argument`."""
    return name, {"metavar": metavar, "help": text, **settings}


def flag(name: str, text: str) -> Option:
    """An option without a value."""
    return name, {"action": "store_true", "help": text}


def renamed(old: str, new: str) -> Option:
    """Refuse an option that has another name now."""

    def refuse(_: str) -> NoReturn:
        raise argparse.ArgumentTypeError(f"is called {new} now")

    return old, {"nargs": "+", "type": refuse, "help": argparse.SUPPRESS}


OVERRIDES = option("--set", "KEY=VALUE", "override a key of the recipe", action="append", default=[], dest="overrides")
TILE = "LR pixels a side of a tile; bounds the memory (256; 1536 for RCAN, which takes means over an image)"
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
