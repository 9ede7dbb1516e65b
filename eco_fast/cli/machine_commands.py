"""The command that looks at the machine: doctor."""

import argparse
from pathlib import Path

from eco_fast.cli.options import NETWORK, Commands, flag, option


def add_doctor(commands: Commands) -> None:
    """Add it."""
    commands.add(
        "doctor",
        "Say what on this machine would stop, slow down or spoil a training, and what mends it; exit code 1 if so.",
        "eco-fast doctor /scratch/runs",
        _doctor,
        option("folders", "DIR", "where runs and stores are to lie (.)", nargs="*", type=Path),
        flag("--json", "print one JSON object instead of a page"),
        NETWORK[0],
    )


def _doctor(args: argparse.Namespace) -> int:
    from eco_fast.training.doctor.page import doctor

    return doctor(args.folders or [Path()], args.device, as_json=args.json)
