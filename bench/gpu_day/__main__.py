"""Everything that only a GPU can tell, in one call of ten minutes; docs/gpu.md is made of what it finds.

    python -m bench.gpu_day --out DIR [--deadline SECONDS] [--only SECTION ...] [--rehearse]
    python -m bench.gpu_day --page [DIR/gpu_day.json] > docs/gpu.md

Sections run in the order of their importance, values before times. Each has a budget; those that do not fit before the
deadline are named, for a second call with `--only`. `DIR/gpu_day.json` is written anew after every result. `--rehearse`
takes tiny networks and judges no value: on a GPU that computes nothing every section still has to end.
"""

import argparse
import os
import sys
import time
from pathlib import Path

from bench.gpu_day import ceilings, images, kernels, options, page, steps, suites
from bench.gpu_day.day import Day, Section

SECTIONS = (
    Section("facts", 5, ceilings.note_facts),
    Section("ceilings", 25, ceilings.measure_ceilings),
    Section("kernels_right", 70, suites.check_kernels),
    Section("trainer_right", 90, suites.check_trainer),
    Section("quick_start", 50, suites.run_quick_start),
    Section("step", 80, steps.measure_step),
    Section("recipes", 120, steps.measure_recipes),
    Section("kernels_speed", 40, kernels.measure_kernels),
    Section("images", 40, images.measure_images),
    Section("compiled_ops", 40, kernels.measure_compiled),
    Section("options", 20, options.try_options),
    Section("counters", 20, options.read_counters),
)


def main() -> int:
    """Run what is asked for; returns 1 if a section raised."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.gpu_day", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [section.name for section in SECTIONS]
    parser.add_argument("--out", type=Path, help="folder of gpu_day.json and what belongs to it")
    parser.add_argument("--deadline", type=float, default=520, help="seconds from now (%(default)s)")
    parser.add_argument("--only", nargs="+", choices=names, default=names, metavar="SECTION", help=", ".join(names))
    parser.add_argument("--rehearse", action="store_true", help="tiny networks, no judgement")
    parser.add_argument("--page", nargs="?", const=None, default=False, metavar="JSON", help="print docs/gpu.md")
    given = parser.parse_args()
    if given.page is not False:
        print(page.page(given.page and Path(given.page)), end="")
        return 0
    if given.out is None:
        parser.error("--out is missing")
    day = Day(given.out, time.monotonic() + given.deadline, rehearse=given.rehearse)
    wanted = [section for section in SECTIONS if section.name in given.only]
    for place, section in enumerate(wanted):
        day.run(section)
        if day.context_is_lost():  # an illegal access, say: nothing of this process reaches the GPU any more
            rest = [later.name for later in wanted[place + 1 :]]
            if rest:
                again = ["--out", str(given.out), "--deadline", str(day.left_in_all()), "--only", *rest]
                again += ["--rehearse"] * given.rehearse
                os.execv(sys.executable, [sys.executable, "-m", "bench.gpu_day", *again])  # noqa: S606 - a process of our own
    return bool(day.results["errors"])


if __name__ == "__main__":
    sys.exit(main())
