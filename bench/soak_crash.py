"""Power cuts, enumerated: whatever they may leave of a run, store, centroids, comparison or release, nothing is lost.

python -m bench.soak_crash [COMMANDS] [SEED]

Every state of `tests/crash/disk.py`, at every moment, is looked at without a command. In COMMANDS of those that differ
in more than litter, drawn at random, the next command is run and must end in the bits of an undisturbed one. Then the
next command itself is cut off everywhere, in one of these states.
"""

import random
import sys
import tempfile
from dataclasses import astuple
from pathlib import Path

import torch

from tests.crash.cuts import Counts, Cuts
from tests.crash.operations import OPERATIONS
from tests.crash.recorder import Recorder

Numbers = tuple[int, ...]


def twice(cuts: Cuts, rng: random.Random) -> Recorder:
    """The next command after a cut, where it has something to do."""
    while True:
        try:
            return cuts.record(rng.choice(cuts.kinds), cuts.operation.go_on)
        except ValueError:  # all is there
            continue


def main(commands: int, seed: int) -> None:
    torch.set_num_threads(1)
    rng = random.Random(seed)  # noqa: S311 - no secret
    total: Numbers = astuple(Counts())
    wrong = 0
    for name, operation in OPERATIONS.items():
        with tempfile.TemporaryDirectory() as folder:
            cuts = Cuts(operation, Path(folder, "cuts"), seed)
            for recorder, most in ((cuts.record(cuts.start, operation.act), commands), (None, commands // 4)):
                for complaint in cuts.explore(recorder or twice(cuts, rng), most):
                    wrong += 1
                    print(f"WRONG: {name}: {complaint[:1000]}", flush=True)
        print(f"{name}: {cuts.counts}", flush=True)
        total = tuple(map(sum, zip(total, astuple(cuts.counts), strict=True)))
    print(f"all, of seed {seed}: {Counts(*total)}; {wrong} wrong")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    main(*[int(value) for value in (*sys.argv[1:], *("40", "0")[len(sys.argv) - 1 :])])
