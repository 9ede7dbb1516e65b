"""The sub-commands of `eco-fast analyze`. Heavy modules are imported when one runs."""

import argparse
from pathlib import Path

from eco_fast.cli.options import Command, add_overrides, commands_of


def add_analyses(analyze: argparse.ArgumentParser) -> None:
    """Give the `analyze` parser its sub-commands."""
    command = commands_of(analyze, "analysis")

    def analysis(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        parser = command(name, summary, example)
        parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder of the results")
        return parser

    _add_landscape(analysis)
    _add_spectrum(analysis)
    _add_noise(analysis)
    _add_targets(analysis)


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


def _add_noise(analysis: Command) -> None:
    noise = analysis(
        "noise",
        "Map what the centroids of pictures lack, beside a network's regression of it.",
        "eco-fast analyze noise runs/residual Set14/HR/baboon.png --out noise",
    )
    noise.add_argument("run_folder", type=Path, metavar="RUN", help="run folder of objective residual")
    noise.add_argument(
        "pictures", nargs="*", metavar="SRC", help="pictures or folders (the first that the run was trained on)"
    )
    noise.set_defaults(run=_noise)


def _add_targets(analysis: Command) -> None:
    targets = analysis(
        "targets",
        "Show the blended targets and inputs of pictures at several alphas.",
        "eco-fast analyze targets runs/eco Set5/HR/butterfly.png --alphas 0 0.5 1 --out targets",
    )
    targets.add_argument(
        "source",
        metavar="RUN|RECIPE",
        help="run folder, or a recipe with a teacher.checkpoint, that makes the centroids",
    )
    targets.add_argument(
        "pictures", nargs="*", metavar="SRC", help="pictures or folders (the first that the recipe names)"
    )
    targets.add_argument(
        "--alphas",
        nargs="+",
        type=float,
        default=(0, 0.25, 0.5, 0.75, 1),
        metavar="ALPHA",
        help="weights of the real pair (0 0.25 0.5 0.75 1)",
    )
    add_overrides(targets)
    targets.set_defaults(run=_targets)


def _landscape(arguments: argparse.Namespace) -> None:
    from eco_fast.study.analyze.landscape import landscape

    landscape(arguments.runs, arguments.out, tuple(arguments.lengths), arguments.batches)


def _spectrum(arguments: argparse.Namespace) -> None:
    from eco_fast.study.analyze.spectrum import spectrum

    spectrum(arguments.runs, arguments.out, arguments.checkpoint, arguments.batches, arguments.objectives)


def _noise(arguments: argparse.Namespace) -> None:
    from eco_fast.study.analyze.inherent_noise import noise

    noise(arguments.run_folder, arguments.pictures, arguments.out)


def _targets(arguments: argparse.Namespace) -> None:
    from eco_fast.study.analyze.targets import targets

    targets(arguments.source, arguments.pictures, arguments.alphas, arguments.out, arguments.overrides)
