"""The `eco-fast` command: a verb per command. Heavy modules are imported when a command runs."""

import argparse
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from eco_fast.cli.options import Command, add_degradation, add_device, add_overrides, checked_tile, commands_of
from eco_fast.cli.study_commands import add_studies

BAD_INPUT = 2
TIMEOUT = 3600  # seconds that one process may be behind the others with its share of the pictures

Arguments = argparse.Namespace


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code: 0, 2 for bad input (one sentence on stderr), 128 + N for signal N."""
    parsed = parser().parse_args(arguments)
    try:
        parsed.run(parsed)
    except ValueError as error:
        print(f"eco-fast: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # a full or read-only disk, a missing permission
        reason = error.strerror or error
        named = f"{error.filename}: cannot be read or written ({reason})" if error.filename else reason
        print(f"eco-fast: {named}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        again = "go on with --resume" if parsed.command == "train" else "run the same command again to go on"
        print(f"\neco-fast: interrupted; {again}", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)
    return 0


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = argparse.ArgumentParser(
        prog="eco-fast", description="Fast, exact, resumable training of image super-resolution networks (ECO)."
    )
    command = commands_of(top, "command")

    train = command(
        "train",
        "Run a recipe: prepare, teacher, centroids, training, table. Without arguments: the quick start.",
        """eco-fast train edsr_baseline_x2_eco --run runs/mine --set data.train='["DIV2K_train_HR"]'""",
    )
    train.add_argument("recipe", nargs="?", metavar="RECIPE", help="name of a shipped recipe, or a .toml file")
    train.add_argument("--run", dest="folder", type=Path, metavar="DIR", help="run folder (runs/RECIPE)")
    train.add_argument("--resume", action="store_true", help="continue the run in the folder")
    train.add_argument("--dry-run", action="store_true", help="say what the run would cost and do, and do nothing")
    train.add_argument("--profile", action="store_true", help="write a trace of a few steps into the run folder")
    add_overrides(train)
    train.set_defaults(run=_train)

    add_studies(command)
    recipes = command("recipes", "List the shipped recipes, with the paper's rows and scores.", "eco-fast recipes")
    recipes.set_defaults(run=_recipes)

    prepare = command(
        "prepare", "Decode pictures once into a store.", "eco-fast prepare DIV2K_train_HR --store stores/div2k"
    )
    prepare.add_argument("sources", nargs="+", metavar="SRC", help="folder, picture, or builtin:train")
    prepare.add_argument("--store", type=Path, required=True, metavar="DIR", help="the store")
    prepare.add_argument("--convert-16bit", action="store_true", help="keep the upper 8 of 16 bits instead of refusing")
    prepare.set_defaults(run=_prepare)

    teach = command(
        "teach",
        "Make the centroids: a teacher's output over every picture of a store.",
        "eco-fast teach --store stores/div2k --teacher edsr_baseline_x2-1bc95232.pt --scale 2",
    )
    teach.add_argument("--store", type=Path, required=True, metavar="DIR", help="made by eco-fast prepare")
    teach.add_argument("--teacher", type=Path, required=True, metavar="CHECKPOINT", help="the teacher's weights")
    add_degradation(teach)
    add_device(teach)
    teach.add_argument(
        "--self-ensemble", action="store_true", help="take the mean over the 8 orientations of each picture"
    )
    teach.set_defaults(run=_teach)

    evaluate = command(
        "evaluate",
        "Score a checkpoint over HR folders, or existing SR pictures: PSNR and SSIM.",
        "eco-fast evaluate runs/mine/checkpoints/best.safetensors --data Set5/HR Set14/HR --scale 2",
    )
    evaluate.add_argument("checkpoint", nargs="?", type=Path, metavar="CHECKPOINT", help="the network")
    evaluate.add_argument("--data", nargs="+", metavar="HR_DIR", help="HR folders, a set each; LR is made on the fly")
    evaluate.add_argument("--sr", metavar="SR_DIR", help="score these pictures instead of a checkpoint")
    evaluate.add_argument("--hr", metavar="HR_DIR", help="their HR pictures; NAME pairs with NAME, NAMEx2, NAME_...")
    add_degradation(evaluate, noise="put noise of so many grey levels on LR; scores are means over 10 draws")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also write the scores as JSON")
    evaluate.add_argument(
        "--save-images", type=Path, metavar="DIR", help="write the SR pictures (with noise, those of the first draw)"
    )
    add_device(evaluate)
    evaluate.set_defaults(run=_evaluate)

    upscale = command(
        "upscale",
        "Upscale pictures of any size with a checkpoint.",
        "eco-fast upscale runs/mine/checkpoints/best.safetensors holiday.jpg holiday_x2.png",
    )
    upscale.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the network")
    upscale.add_argument("source", type=Path, metavar="SRC", help="picture or folder")
    upscale.add_argument("out", type=Path, metavar="OUT", help="PNG file or folder")
    add_device(upscale)
    upscale.set_defaults(run=_upscale)

    _add_downsample(command)
    return top


def _add_downsample(command: Command) -> None:
    downsample = command(
        "downsample",
        "Write LR pictures exactly as MATLAB's imresize makes them, as PNG files of the same names.",
        "eco-fast downsample DIV2K_train_HR DIV2K_train_LR_bicubic/X2 --scale 2",
    )
    downsample.add_argument("source", type=Path, metavar="SRC", help="picture or folder")
    downsample.add_argument("out", type=Path, metavar="OUT", help="PNG file or folder")
    add_degradation(downsample, noise="write the pictures that evaluate scores with S, to OUT/draw-00 ... OUT/draw-09")
    downsample.set_defaults(run=_downsample)


def _train(arguments: Arguments) -> None:
    from eco_fast import config
    from eco_fast.training.pipeline import run_recipe
    from eco_fast.utils import distributed

    resume = arguments.resume or distributed.restarted()
    recipe = arguments.recipe or "quickstart"
    folder = arguments.folder or Path("runs") / Path(recipe).stem
    saved = folder / "config.toml"
    # The recipe of a resumed run is the one in its folder; what the command line names too is checked against it.
    if resume and arguments.recipe is None and saved.is_file():
        recipe = str(saved)
    resolved = config.load(recipe, arguments.overrides)
    if arguments.dry_run:
        from eco_fast.training.pipeline import dry_run

        dry_run(resolved, folder, resume=resume)
        return
    with distributed.process_group(resolved.train.timeout):
        run_recipe(resolved, folder, resume=resume, profile=arguments.profile)


def _recipes(_: Arguments) -> None:
    from eco_fast.study.recipe_list import show_recipes

    show_recipes()


def _prepare(arguments: Arguments) -> None:
    from eco_fast.data.prepare import prepare

    store = prepare(arguments.sources, arguments.store, convert_16bit=arguments.convert_16bit)
    print(f"{arguments.store}: {len(store)} pictures")


def _teach(arguments: Arguments) -> None:
    from eco_fast.data.store import Store
    from eco_fast.inference.centroids import make_centroids
    from eco_fast.models import load_network_of_scale
    from eco_fast.utils import distributed
    from eco_fast.utils.device import pick_device

    tile = checked_tile(arguments)
    with distributed.process_group(TIMEOUT):
        device = pick_device(arguments.device)
        made = make_centroids(
            Store(arguments.store),
            load_network_of_scale(arguments.teacher, arguments.scale).to(device),
            arguments.teacher,
            rounding=arguments.rounding,
            tile=tile,
            device=device,
            self_ensemble=arguments.self_ensemble,
        )
        print(f"centroids: {made.folder}")


def _evaluate(arguments: Arguments) -> None:
    from eco_fast.data import noise
    from eco_fast.evaluation import evaluate
    from eco_fast.utils import distributed

    pictures = arguments.sr is not None and arguments.hr is not None
    checkpoint = arguments.checkpoint is not None and arguments.data is not None
    if pictures == checkpoint or (arguments.sr is None) != (arguments.hr is None):
        raise ValueError("evaluate takes either CHECKPOINT with --data HR_DIR, or --sr SR_DIR with --hr HR_DIR")
    unused = {"save_images": None, "noise_sigma": 0.0, "rounding": "uint8", "device": "auto", "tile": None}
    for option, default in unused.items():
        if pictures and getattr(arguments, option) != default:
            name = option.replace("_", "-")
            raise ValueError(f"--{name} goes with CHECKPOINT: the pictures of --sr exist already")
    tile = checked_tile(arguments)
    with distributed.process_group(TIMEOUT):
        if pictures:
            results = evaluate.evaluate_images(arguments.sr, arguments.hr, arguments.scale)
            facts = {"sr": arguments.sr, "hr": arguments.hr}
        else:
            results = evaluate.evaluate_checkpoint(
                arguments.checkpoint,
                arguments.data,
                arguments.scale,
                rounding=arguments.rounding,
                noise_sigma=arguments.noise_sigma,
                save_images=arguments.save_images,
                tile=tile,
                device=arguments.device,
            )
            facts = {"checkpoint": str(arguments.checkpoint), "rounding": arguments.rounding}
            facts |= noise.noise_metadata(arguments.noise_sigma)
        evaluate.show(results, arguments.noise_sigma)
        if arguments.json and distributed.is_main_process():
            evaluate.write_results(arguments.json, results, scale=arguments.scale, **facts)


def _upscale(arguments: Arguments) -> None:
    from eco_fast.inference.upscale import upscale

    written = upscale(
        arguments.checkpoint,
        arguments.source,
        arguments.out,
        tile=checked_tile(arguments),
        device=arguments.device,
    )
    print(f"{len(written)} written to {arguments.out}")


def _downsample(arguments: Arguments) -> None:
    from eco_fast.data.downsample import downsample

    written = downsample(
        arguments.source,
        arguments.out,
        arguments.scale,
        rounding=arguments.rounding,
        noise_sigma=arguments.noise_sigma,
    )
    print(f"{len(written)} written to {arguments.out}")
