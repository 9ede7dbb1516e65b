"""Options that several commands have."""

import argparse
from collections.abc import Callable

SCALES = (2, 3, 4, 8)
ROUNDINGS = ("uint8", "im2double")

Command = Callable[[str, str, str], argparse.ArgumentParser]
"""From a name, a summary and an example to the parser of a new command."""


def commands_of(parser: argparse.ArgumentParser, kind: str) -> Command:
    """Let a parser have commands, whose name it keeps under `kind`; each explains itself with an example."""
    commands = parser.add_subparsers(dest=kind, required=True, metavar=kind.upper())

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    return command


def add_overrides(command: argparse.ArgumentParser) -> None:
    """`--set`."""
    command.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="KEY=VALUE", help="override a key of the recipe"
    )


def add_degradation(command: argparse.ArgumentParser, noise: str = "") -> None:
    """How LR pictures are made; `noise` is the help of an option that adds it."""
    command.add_argument("--scale", type=int, required=True, choices=SCALES, help="upscaling factor")
    command.add_argument(
        "--rounding", choices=ROUNDINGS, default="uint8", help="MATLAB's convention of the LR pictures (%(default)s)"
    )
    if noise:
        command.add_argument("--noise-sigma", type=float, default=0.0, metavar="S", help=noise)


def add_device(command: argparse.ArgumentParser) -> None:
    """Where and in what pieces a network runs."""
    command.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:N (%(default)s)")
    command.add_argument(
        "--tile",
        type=int,
        metavar="N",
        help="LR pixels a side of a tile; bounds the memory (256; 1536 for RCAN, which takes means over a picture)",
    )


def checked_tile(arguments: argparse.Namespace) -> int | None:
    """The tile that was given.

    Raises:
        ValueError: it is empty.
    """
    tile: int | None = arguments.tile
    if tile is not None and tile < 1:
        raise ValueError(f"--tile: expected at least 1 pixel, got {tile}")
    return tile
