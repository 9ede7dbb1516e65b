"""Every fault at every place of a run of two and four ranks: it is named, nothing is lost, and the run goes on.

python -m bench.soak_faults                     # the whole matrix
python -m bench.soak_faults --only killed,4     # the cells that have all of these words

Faults: a rank is killed, stopped, cut off from the others, slower than all; a number is NaN, the disk full, an image
corrupt. Places: start, centroids, loading, forward, backward, reduce, update, validation, checkpoint.
"""

import argparse
import tempfile
from pathlib import Path

from tests.faults.cells import CELLS, LostError, meet, prepare


def main(only: list[str]) -> None:
    wrong, run = 0, 0
    with tempfile.TemporaryDirectory() as name:
        prepared = prepare(Path(name, "prepared"))
        for number, cell in enumerate(CELLS):
            if not set(only) <= {cell.fault, cell.place, str(cell.world)}:
                continue
            if cell.impossible:
                print(f"{cell}: cannot be, {cell.impossible}", flush=True)
                continue
            run += 1
            try:
                sentence = meet(cell, prepared, Path(name, str(number)))
                print(f"{cell}: {sentence or 'goes on to the end'}", flush=True)
            except LostError as error:
                wrong += 1
                print(f"WRONG: {error}", flush=True)
    print(f"{run} cells run, {wrong} wrong")
    if wrong:
        raise SystemExit(1)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="words of the cells to run, with commas between them")
    given = parser.parse_args().only
    main(given.split(",") if given else [])
