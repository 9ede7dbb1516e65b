"""The commands that put trainings beside each other: compare, analyze and table."""

import argparse
from pathlib import Path

from eco_fast.cli.analyze_commands import add_analyses
from eco_fast.cli.options import Command, add_overrides


def add_studies(command: Command) -> None:
    """Register them."""
    _add_compare(command)
    analyze = command(
        "analyze",
        "Measure what the trainings of finished runs were like.",
        "eco-fast analyze landscape runs/vanilla runs/noise_free --out landscape",
    )
    add_analyses(analyze)
    _add_table(command)


def _add_compare(command: Command) -> None:
    compare = command(
        "compare",
        "Train several arms of a recipe with several seeds on equal terms: tables, intervals, curves.",
        "eco-fast compare edsr_baseline_x2_eco --arm vanilla --arm eco --seeds 3 --across train.batch='[2, 4, 8, 16]'",
    )
    compare.add_argument("recipe", metavar="RECIPE", help="name of a shipped recipe, or a .toml file")
    compare.add_argument("--run", dest="folder", type=Path, metavar="DIR", help="folder (runs/RECIPE-compared)")
    compare.add_argument(
        "--arm",
        action="append",
        nargs="+",
        default=[],
        dest="arms",
        metavar=("NAME", "KEY=VALUE"),
        help="an objective, or a name with what it changes; once for each arm (vanilla, kd, noise_free, eco)",
    )
    compare.add_argument(
        "--across", action="append", default=[], metavar="KEY=[...]", help="each arm with each of these values of a key"
    )
    compare.add_argument("--seeds", type=int, default=3, metavar="N", help="runs of each arm (%(default)s)")
    add_overrides(compare)
    compare.set_defaults(run=_compare)


def _add_table(command: Command) -> None:
    table = command(
        "table",
        "Put the results of finished runs into one table, beside the paper's numbers.",
        "eco-fast table runs/edsr_x2_vanilla runs/edsr_x2_eco --out tables/edsr",
    )
    table.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="run folders; seeds of one recipe are one row")
    table.add_argument("--out", type=Path, metavar="DIR", help="also write table.md and table.csv there")
    table.set_defaults(run=_table)


def _compare(arguments: argparse.Namespace) -> None:
    from eco_fast import config
    from eco_fast.study.compare import compare
    from eco_fast.utils import distributed

    folder = arguments.folder or Path("runs") / f"{Path(arguments.recipe).stem}-compared"
    resolved = config.load(arguments.recipe, arguments.overrides)
    with distributed.process_group(resolved.train.timeout):
        compare(resolved, arguments.arms, arguments.across, arguments.seeds, folder)


def _table(arguments: argparse.Namespace) -> None:
    from eco_fast.study.paper_table import make_table

    make_table(arguments.runs, arguments.out)
