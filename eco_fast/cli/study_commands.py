"""The commands that look at trainings: compare, analyze, report and table. Heavy modules load when one runs."""

import argparse
from pathlib import Path

from eco_fast.cli.options import WITH_KEYS, Commands, Option, option
from eco_fast.cli.recipe_options import add_keys


def add_studies(commands: Commands) -> None:
    """Add them."""
    compare = commands.add(
        "compare",
        "Train several variants of a recipe with several seeds on equal terms: tables, intervals, curves.",
        "eco-fast compare edsr_baseline_x2_eco --variant vanilla --variant eco \\\n"
        "      --across train.batch_size='[2, 4, 8, 16]' --data.train DIV2K_train_HR",
        _compare,
        option("recipe", "RECIPE", "name of a shipped recipe, or a .toml file"),
        option("--run", "DIR", "folder (runs/RECIPE-compared)", dest="folder", type=Path),
        option(
            "--variant",
            ("NAME", "KEY=VALUE"),
            "an objective, or a name with what it changes; once for each variant (vanilla, kd, noise_free, eco)",
            action="append",
            nargs="+",
            default=[],
            dest="variants",
        ),
        option("--across", "KEY=[...]", "each variant with each of these values of a key", action="append", default=[]),
        option("--seeds", "N", "runs of each variant (%(default)s)", type=int, default=3),
        option(
            "--tune",
            "KEY=[...]",
            "first pick each variant's best of these values of a key, on the validation images",
            action="append",
            default=[],
        ),
        option("--tuning-seeds", "N", "runs of each value that --tune tries (%(default)s)", type=int, default=1),
        usage="eco-fast compare RECIPE [--run DIR] [--variant NAME [KEY=VALUE ...]]\n"
        "       [--across KEY=[...]] [--seeds N] [--tune KEY=[...]] [--tuning-seeds N]\n"
        "       [--KEY VALUE ...]",
        **WITH_KEYS,
    )
    add_keys(compare)
    compare.gone["--arm"] = "is called --variant now"
    analyze = commands.add(
        "analyze",
        "Measure what the trainings of finished runs were like.",
        "eco-fast analyze landscape runs/vanilla runs/noise_free --out landscape",
        None,
    )
    _add_analyses(Commands(analyze, "analysis"))
    commands.add(
        "report",
        "Put everything about a run or a comparison on one page, RUN/report.html, which needs no other file.",
        "eco-fast report runs/quickstart",
        _report,
        option("folder", "RUN", "folder of a run, finished or not, or of a comparison", type=Path),
    )
    commands.add(
        "table",
        "Put the results of finished runs into one table, beside the paper's numbers.",
        "eco-fast table runs/edsr_x2_vanilla runs/edsr_x2_eco --out tables/edsr",
        _table,
        option("runs", "RUN", "run folders; seeds of one recipe are one row", nargs="+", type=Path),
        option("--out", "DIR", "also write table.md and table.csv there", type=Path),
    )


def _add_analyses(analyses: Commands) -> None:
    out = option("--out", "DIR", "folder of the results", type=Path, required=True)
    analyses.add(
        "landscape",
        "Measure how loss and gradient change along the gradient's direction, at every kept step.",
        "eco-fast analyze landscape runs/compared/runs/*/seed=* --out landscape",
        _landscape,
        out,
        option("runs", "RUN", "run folders with kept checkpoints", nargs="+", type=Path),
        option(
            "--lengths",
            ("FIRST", "LAST", "COUNT"),
            "how far to go, in distances that a step of the optimizer moves the weights (0.5 4 8)",
            nargs=3,
            type=float,
            default=(0.5, 4, 8),
        ),
        option("--batches", "N", "training batches that the loss is the mean of (%(default)s)", type=int, default=1),
    )
    analyses.add(
        "spectrum",
        "Show training patches, and the gradients of their losses, by spatial frequency.",
        "eco-fast analyze spectrum runs/kd runs/eco --checkpoint 5000 --out spectrum",
        _spectrum,
        out,
        option("runs", "RUN", "run folders", nargs="+", type=Path),
        option("--checkpoint", "NAME|STEP", "last, best, or a kept step; 0 is the start (last)", default="last"),
        option("--batches", "N", "training batches that means are taken over (%(default)s)", type=int, default=16),
        option(
            "--objectives",
            "NAME",
            "the losses of these on the weights of one RUN, instead of its own (vanilla, kd, noise_free, eco)",
            nargs="+",
            choices=("vanilla", "kd", "noise_free", "eco"),
        ),
    )
    _add_analyses_of_images(analyses, out)


def _add_analyses_of_images(analyses: Commands, out: Option) -> None:
    analyses.add(
        "noise",
        "Map what the centroids of images lack, beside a network's regression of it.",
        "eco-fast analyze noise runs/residual Set14/HR/baboon.png --out noise",
        _noise,
        out,
        option("run_folder", "RUN", "run folder of objective residual", type=Path),
        option("sources", "SRC", "images or folders (the first that the run was trained on)", nargs="*"),
    )
    alphas = (0, 0.25, 0.5, 0.75, 1)
    targets = analyses.add(
        "targets",
        "Show the blended targets and inputs of images at several alphas.",
        "eco-fast analyze targets runs/eco Set5/HR/butterfly.png --out targets",
        _targets,
        out,
        option("source", "RUN|RECIPE", "run folder, or a recipe with a teacher.checkpoint, that makes the centroids"),
        option("sources", "SRC", "images or folders (the first that the recipe names)", nargs="*"),
        option(
            "--alphas", "ALPHA", "weights of the real pair (0 0.25 0.5 0.75 1)", nargs="+", type=float, default=alphas
        ),
        usage="eco-fast analyze targets RUN|RECIPE [SRC ...] --out DIR\n       [--alphas ALPHA ...] [--KEY VALUE ...]",
        **WITH_KEYS,
    )
    add_keys(targets)


def _compare(args: argparse.Namespace) -> None:
    from eco_fast import config
    from eco_fast.study.compare import compare
    from eco_fast.utils import distributed

    folder = args.folder or Path("runs") / f"{Path(args.recipe).stem}-compared"
    resolved = config.load(args.recipe, args.overrides)
    with distributed.process_group(resolved.train.timeout):
        compare(resolved, args.variants, args.across, args.seeds, folder, args.tune, args.tuning_seeds)


def _report(args: argparse.Namespace) -> None:
    from eco_fast.study.comparison_page import write_report

    print(write_report(args.folder))


def _table(args: argparse.Namespace) -> None:
    from eco_fast.study.paper_table import make_table

    make_table(args.runs, args.out)


def _landscape(args: argparse.Namespace) -> None:
    from eco_fast.study.analyze.landscape import landscape

    landscape(args.runs, args.out, tuple(args.lengths), args.batches)


def _spectrum(args: argparse.Namespace) -> None:
    from eco_fast.study.analyze.spectrum import spectrum

    spectrum(args.runs, args.out, args.checkpoint, args.batches, args.objectives)


def _noise(args: argparse.Namespace) -> None:
    from eco_fast.study.analyze.inherent_noise import noise

    noise(args.run_folder, args.sources, args.out)


def _targets(args: argparse.Namespace) -> None:
    from eco_fast.study.analyze.targets import targets

    targets(args.source, args.sources, args.alphas, args.out, args.overrides)
