"""The sub-commands of `eco-fast analyze`. Heavy modules are imported when one runs."""

import argparse
from collections.abc import Callable
from pathlib import Path

Command = Callable[[str, str, str], argparse.ArgumentParser]
"""From a name, a summary and an example to a parser that the command line knows."""


def add_analyses(analyze: argparse.ArgumentParser) -> None:
    """Give the `analyze` parser its sub-commands."""
    analyses = analyze.add_subparsers(dest="analysis", required=True, metavar="ANALYSIS")

    def analysis(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        parser = analyses.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
        return parser

    _add_landscape(analysis)
    _add_spectrum(analysis)


def _add_landscape(analysis: Command) -> None:
    landscape = analysis(
        "landscape",
        "Measure how loss and gradient change along the gradient's direction, at every kept step.",
        "eco-fast analyze landscape runs/compared/runs/*/seed=* --out landscape",
    )
    landscape.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders with kept checkpoints")
    landscape.add_argument(
        "--lengths",
        nargs=3,
        type=float,
        default=(0.5, 4, 8),
        metavar=("FIRST", "LAST", "COUNT"),
        help="how far to go, in distances that a step of the optimizer moves the weights (0.5 4 8)",
    )
    landscape.add_argument(
        "--batches",
        type=int,
        default=1,
        metavar="N",
        help="training batches that the loss is the mean of (%(default)s)",
    )
    landscape.set_defaults(run=_landscape)


def _add_spectrum(analysis: Command) -> None:
    spectrum = analysis(
        "spectrum",
        "Show training patches, and the gradients of their losses, by spatial frequency.",
        "eco-fast analyze spectrum runs/vanilla runs/eco --checkpoint 5000 --out spectrum",
    )
    spectrum.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders")
    spectrum.add_argument(
        "--checkpoint", default="last", metavar="NAME|STEP", help="last, best, or a kept step; 0 is the start (last)"
    )
    spectrum.add_argument(
        "--batches", type=int, default=16, metavar="N", help="training batches that means are taken over (%(default)s)"
    )
    spectrum.add_argument(
        "--objectives",
        nargs="+",
        choices=("vanilla", "kd", "noise_free", "eco"),
        help="the losses of these on the weights of one RUN, instead of its own",
    )
    spectrum.set_defaults(run=_spectrum)


def _landscape(arguments: argparse.Namespace) -> None:
    from eco_fast.analyze.landscape import landscape

    first, last, count = arguments.lengths
    landscape(arguments.runs, arguments.out, (first, last, int(count)), arguments.batches)


def _spectrum(arguments: argparse.Namespace) -> None:
    from eco_fast.analyze.spectrum import spectrum

    spectrum(arguments.runs, arguments.out, arguments.checkpoint, arguments.batches, arguments.objectives)
