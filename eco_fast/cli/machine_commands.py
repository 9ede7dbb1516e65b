"""The commands that look at the machine: doctor and bench."""

import argparse
from pathlib import Path

from eco_fast.cli.options import NETWORK, WITH_KEYS, Commands, flag, option
from eco_fast.cli.recipe_options import add_keys


def add_machine_commands(commands: Commands) -> None:
    """Add them."""
    commands.add(
        "doctor",
        "Say what on this machine would stop, slow down or spoil a training, and what mends it; exit code 1 if so.",
        "eco-fast doctor /scratch/runs",
        _doctor,
        option("folders", "DIR", "where runs and stores are to lie (.)", nargs="*", type=Path),
        flag("--json", "print one JSON object instead of a page"),
        NETWORK[0],
    )
    bench = commands.add(
        "bench",
        "Measure how fast recipes train here, beside the bare network, the field's loop and the machine's peak. "
        "Without RECIPE: EDSR-baseline, the quick start, SwinIR-small and RCAN.",
        "eco-fast bench edsr_baseline_x2_eco --across 'train.compile=[true, false]' \\\n      --out runs/speed",
        _bench,
        option("recipes", "RECIPE", "name of a shipped recipe, or a .toml file", nargs="*"),
        option("--out", "DIR", "folder of bench.json and bench.png (runs/bench-DATE-TIME)", type=Path),
        option("--compare", "FILE", "the bench.json of another day, to compare with", dest="earlier", type=Path),
        option("--across", "KEY=[...]", "each recipe with each of these values of a key", action="append", default=[]),
        option(
            "--memory-format",
            None,
            "each recipe with weights and input in each of these (the network's own)",
            choices=("channels_last", "contiguous"),
            nargs="+",
            default=[],
            dest="memory_formats",
        ),
        option("--rounds", "N", "in each of which all ways take their turn (%(default)s)", type=int, default=5),
        usage="eco-fast bench [RECIPE ...] [--out DIR] [--compare FILE] [--rounds N]\n"
        "       [--across KEY=[...]] [--memory-format FORMAT ...] [--KEY VALUE ...]",
        **WITH_KEYS,
    )
    add_keys(bench)


def _doctor(args: argparse.Namespace) -> int:
    from eco_fast.training.doctor.page import doctor

    return doctor(args.folders or [Path()], args.device, as_json=args.json)


def _bench(args: argparse.Namespace) -> int:
    from eco_fast.training.bench.page import bench

    results = bench(
        args.recipes,
        args.overrides,
        across=args.across,
        memory_formats=args.memory_formats,
        rounds=args.rounds,
        out=args.out,
        earlier=args.earlier,
    )
    return int(any("failed" in case for case in results["cases"]))
