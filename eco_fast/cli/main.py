"""The `eco-fast` command: a verb per command. Heavy modules are imported when a command runs."""

import argparse
import io
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from eco_fast.cli.export_command import add_export
from eco_fast.cli.machine_commands import add_machine_commands
from eco_fast.cli.options import (
    DEGRADATION,
    NETWORK,
    WITH_KEYS,
    Commands,
    Parser,
    checked_tile,
    flag,
    noise_sigma,
    option,
)
from eco_fast.cli.publish_command import add_publish
from eco_fast.cli.recipe_options import add_keys
from eco_fast.cli.study_commands import add_studies
from eco_fast.cli.verify_command import add_verify

BAD_INPUT = 2
CACHES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")  # of the compilers
TIMEOUT = 3600  # seconds that ranks wait for each other
AGAIN = {"train": "go on with --resume", "bench": "what was measured until then is kept", "verify": "nothing is kept"}
REPEAT = "run the same command again to go on"
COMPLETION = (
    'bash: put eval "$(eco-fast completion bash)" into ~/.bashrc; zsh: write it to _eco-fast in a folder of $fpath; '
    "fish: write it to eco-fast.fish in ~/.config/fish/completions"
)
SOURCE_AND_OUT = (
    option("source", "SRC", "image or folder", type=Path),
    option("out", "OUT", "PNG file or folder", type=Path),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, 2 for bad input (one sentence on stderr), 128 + N for signal N."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of any encoding, and terminals of any
            stream.reconfigure(errors="backslashreplace")
    parsed = argparse.Namespace(command=None)
    try:
        parser().parse_args(arguments, parsed)
        return parsed.run(parsed) or 0
    except (ValueError, MemoryError, ImportError) as error:  # the latter two: no room for the libraries themselves
        print(f"eco-fast: {_printable(str(error) or 'out of memory')}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:  # a full or read-only disk, a missing permission
        print(f"eco-fast: {_printable(_sentence(error))}", file=sys.stderr)
        return BAD_INPUT
    except KeyboardInterrupt as error:
        print(f"\neco-fast: interrupted; {AGAIN.get(parsed.command, REPEAT)}", file=sys.stderr)
        return 128 + getattr(error, "number", signal.SIGINT)


def _sentence(error: OSError) -> str:
    """What could not be read or written, why, and who names it if the command line does not."""
    if not error.filename:
        return str(error.strerror or error)
    named = f"{error.filename}: cannot be read or written ({error.strerror or error})"
    owners = [name for name in CACHES if os.environ.get(name) and named.startswith(os.environ[name])]
    return f"{named}; let ${owners[0]} name a folder that can be written" if owners else named


def _printable(sentence: str) -> str:
    """The sentence on one line: names of files, and keys of recipes, may hold whatever cannot be printed."""
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in sentence)


def parser() -> Parser:
    """The whole command line."""
    top = Parser(
        prog="eco-fast", description="Fast, exact, resumable training of image super-resolution networks (ECO)."
    )
    commands = Commands(top, "command", renamed={"teach": "centroids"})
    train = commands.add(
        "train",
        "Run a recipe: prepare, teacher, centroids, training, table. Without arguments: the quick start.",
        "eco-fast train edsr_baseline_x2_eco --data.train DIV2K_train_HR Flickr2K \\\n"
        "      --train.steps 20000 --run runs/mine",
        _train,
        option("recipe", "RECIPE", "name of a shipped recipe, or a .toml file", nargs="?"),
        option("--run", "DIR", "run folder (runs/RECIPE)", dest="folder", type=Path),
        flag("--resume", "continue the run in the folder"),
        flag("--dry-run", "say what the run would cost and do, and do nothing"),
        flag("--profile", "write a trace of a few steps into the run folder"),
        usage="eco-fast train [RECIPE] [--run DIR] [--resume] [--dry-run] [--profile]\n       [--KEY VALUE ...]",
        **WITH_KEYS,
    )
    add_keys(train)
    add_studies(commands)
    commands.add("recipes", "List the shipped recipes, with the paper's rows and scores.", "eco-fast recipes", _recipes)
    _add_tools(commands)
    add_machine_commands(commands)
    add_verify(commands)
    add_publish(commands)
    commands.add(
        "completion",
        "Print the script that lets a shell complete commands, options, choices and recipes.",
        "eco-fast completion fish > ~/.config/fish/completions/eco-fast.fish",
        _completion,
        option("shell", None, COMPLETION, choices=("bash", "zsh", "fish")),
    )
    commands.add(
        "schema",
        "Print the JSON schema of recipes, by which editors complete and check them.",
        "eco-fast schema > recipe.schema.json",
        _schema,
    )
    return top


def _add_tools(commands: Commands) -> None:
    """The commands that take files and make files."""
    commands.add(
        "prepare",
        "Decode images once into a store.",
        "eco-fast prepare DIV2K_train_HR --store stores/div2k",
        _prepare,
        option("sources", "SRC", "folder, image, or builtin:train", nargs="+"),
        option("--store", "DIR", "the store", type=Path, required=True),
        flag("--convert-16bit", "keep the upper 8 of 16 bits instead of refusing"),
        flag("--verify", "hash every stored image, whatever its modification time"),
    )
    commands.add(
        "centroids",
        "Make the centroids: a teacher's output over every image of a store.",
        "eco-fast centroids --store stores/div2k --teacher edsr_x2.pt --scale 2",
        _centroids,
        option("--store", "DIR", "made by eco-fast prepare", type=Path, required=True),
        option("--teacher", "CHECKPOINT", "the teacher's weights", type=Path, required=True),
        *DEGRADATION,
        *NETWORK,
        flag("--self-ensemble", "take the mean over the 8 orientations of each image"),
        flag("--verify", "hash every stored centroid, whatever its modification time"),
    )
    commands.add(
        "evaluate",
        "Score a checkpoint over HR folders, or existing SR images: PSNR and SSIM.",
        "eco-fast evaluate best.safetensors --data Set5/HR Set14/HR --scale 2",
        _evaluate,
        option("checkpoint", "CHECKPOINT", "the network", nargs="?", type=Path),
        option("--data", "HR_DIR", "HR folders, a set each; LR is made on the fly", nargs="+"),
        option("--sr", "SR_DIR", "score these images instead of a checkpoint"),
        option("--hr", "HR_DIR", "their HR images; NAME pairs with NAME, NAMEx2, NAME_..."),
        *DEGRADATION,
        noise_sigma("put noise of so many grey levels on LR; scores are means over 10 draws"),
        option("--json", "FILE", "also write the scores as JSON", type=Path),
        option("--save-images", "DIR", "write the SR images (with noise, those of the first draw)", type=Path),
        *NETWORK,
    )
    commands.add(
        "upscale",
        "Upscale images of any size with a checkpoint, or with an exported ONNX file.",
        "eco-fast upscale best.safetensors holiday.jpg holiday_x2.png",
        _upscale,
        option("checkpoint", "CHECKPOINT", "the network", type=Path),
        *SOURCE_AND_OUT,
        *NETWORK,
    )
    add_export(commands)
    commands.add(
        "downsample",
        "Write LR images exactly as MATLAB's imresize makes them, as PNG files of the same names.",
        "eco-fast downsample DIV2K_train_HR DIV2K_train_LR_bicubic/X2 --scale 2",
        _downsample,
        *SOURCE_AND_OUT,
        *DEGRADATION,
        noise_sigma("write the images that evaluate scores with S, to OUT/draw-00 ... OUT/draw-09"),
    )


def _train(args: argparse.Namespace) -> None:
    from eco_fast import config
    from eco_fast.training.pipeline import run_recipe
    from eco_fast.utils import distributed

    resume = args.resume or distributed.restarted()
    recipe = args.recipe or "quickstart"
    folder = args.folder or Path("runs") / Path(recipe).stem
    saved = folder / "config.toml"
    # The recipe of a resumed run is the one in its folder; what the command line names too is checked against it.
    if resume and args.recipe is None and saved.is_file():
        recipe = str(saved)
    resolved = config.load(recipe, args.overrides)
    if args.dry_run:
        from eco_fast.training.dry_run import dry_run

        dry_run(resolved, folder, resume=resume)
        return
    with distributed.process_group(resolved.train.timeout):
        run_recipe(resolved, folder, resume=resume, profile=args.profile)


def _recipes(_: argparse.Namespace) -> None:
    from eco_fast.study.recipe_list import show_recipes

    show_recipes()


def _completion(args: argparse.Namespace) -> None:
    from eco_fast.cli.completion import completion_script

    print(completion_script(parser(), args.shell))


def _schema(_: argparse.Namespace) -> None:
    from eco_fast.config.editor_schema import schema_text

    print(schema_text(), end="")


def _prepare(args: argparse.Namespace) -> None:
    from eco_fast.data.prepare import prepare

    store = prepare(args.sources, args.store, convert_16bit=args.convert_16bit, verify=args.verify)
    print(f"{args.store}: {len(store)} images")


def _centroids(args: argparse.Namespace) -> None:
    from eco_fast.data.store import Store
    from eco_fast.inference.centroids import make_centroids
    from eco_fast.models import load_network_of_scale
    from eco_fast.utils import distributed
    from eco_fast.utils.device import pick_device

    tile = checked_tile(args)
    with distributed.process_group(TIMEOUT):
        device = pick_device(args.device)
        made = make_centroids(
            Store(args.store),
            load_network_of_scale(args.teacher, args.scale).to(device),
            args.teacher,
            rounding=args.rounding,
            tile=tile,
            device=device,
            self_ensemble=args.self_ensemble,
            verify=args.verify,
        )
        print(f"centroids: {made.folder}")


def _evaluate(args: argparse.Namespace) -> None:
    from eco_fast.data import noise
    from eco_fast.evaluation import evaluate
    from eco_fast.utils import distributed

    images = args.sr is not None and args.hr is not None
    checkpoint = args.checkpoint is not None and args.data is not None
    if images == checkpoint or (args.sr is None) != (args.hr is None):
        raise ValueError("evaluate takes either CHECKPOINT with --data HR_DIR, or --sr SR_DIR with --hr HR_DIR")
    unused = {"save_images": None, "noise_sigma": 0.0, "rounding": "uint8", "device": "auto", "tile": None}
    for name, default in unused.items():
        if images and getattr(args, name) != default:
            raise ValueError(f"--{name.replace('_', '-')} goes with CHECKPOINT: the images of --sr exist already")
    tile = checked_tile(args)
    with distributed.process_group(TIMEOUT):
        if images:
            results = evaluate.evaluate_images(args.sr, args.hr, args.scale)
            facts = {"sr": args.sr, "hr": args.hr}
        else:
            results = evaluate.evaluate(
                args.checkpoint,
                args.data,
                args.scale,
                rounding=args.rounding,
                noise_sigma=args.noise_sigma,
                save_images=args.save_images,
                tile=tile,
                device=args.device,
            )
            facts = {"checkpoint": str(args.checkpoint), "rounding": args.rounding} | noise.noise_metadata(
                args.noise_sigma
            )
        if args.json and distributed.is_main_process():  # first: a terminal may fail
            evaluate.write_results(args.json, results, scale=args.scale, **facts)
        evaluate.show(results, args.noise_sigma)


def _upscale(args: argparse.Namespace) -> None:
    from eco_fast.inference.upscale import upscale

    written = upscale(args.checkpoint, args.source, args.out, tile=checked_tile(args), device=args.device)
    print(f"{len(written)} written to {args.out}")


def _downsample(args: argparse.Namespace) -> None:
    from eco_fast.data.downsample import downsample

    sigma = args.noise_sigma
    written = downsample(args.source, args.out, args.scale, rounding=args.rounding, noise_sigma=sigma)
    print(f"{len(written)} written to {args.out}")
