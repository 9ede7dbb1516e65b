"""`eco-fast verify`: the audit of a run. Heavy modules load when it runs."""

import argparse
from pathlib import Path

from eco_fast.cli.options import WITH_KEYS, Commands, option
from eco_fast.cli.recipe_options import add_keys


def add_verify(commands: Commands) -> None:
    """Add it."""
    verify = commands.add(
        "verify",
        "Make parts of a run's training again, and say whether its networks came from its recipe; exit code 1 if not.",
        "eco-fast verify runs/mine --stretches 5",
        _verify,
        option("run_folder", "RUN", "run folder, also one of a comparison's; it is not changed", type=Path),
        option(
            "--stretches",
            "N|all",
            "how many of the stretches between kept checkpoints to make again (%(default)s)",
            type=_count,
            default=20,
        ),
        option("--choice", "SEED", "which of them: the seed of an earlier audit (a new one)", type=int),
        option("--network", "FILE", "published weights that have to be the run's", nargs="+", type=Path, default=[]),
        option("--out", "FILE", "the certificate (RUN.certificate.json, beside the run)", type=Path),
        usage="eco-fast verify RUN [--stretches N|all] [--choice SEED]\n"
        "       [--network FILE ...] [--out FILE] [--KEY VALUE ...]",
        **WITH_KEYS,
    )
    add_keys(verify)


def _count(text: str) -> int | str:
    if text == "all":
        return text
    if text.isdecimal() and int(text):
        return int(text)
    raise argparse.ArgumentTypeError(f"expected a number from 1, or all, got {text!r}")


def _verify(args: argparse.Namespace) -> int:
    from eco_fast.training.verify.verify import verify

    proven = verify(
        args.run_folder,
        stretches=None if args.stretches == "all" else args.stretches,
        seed=args.choice,
        overrides=args.overrides,
        released=args.network,
        out=args.out,
    )
    return int(not proven)
