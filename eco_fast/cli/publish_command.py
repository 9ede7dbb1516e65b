"""`eco-fast publish`: a finished run as a folder that is ready for release. Heavy modules load when it runs."""

import argparse
from pathlib import Path

from eco_fast.cli.options import NETWORK, Commands, checked_tile, option


def add_publish(commands: Commands) -> None:
    """Add it."""
    commands.add(
        "publish",
        "Make a finished run a folder for release: weights, hashes, recipe, model card, OpenModelDB entry.",
        "eco-fast publish runs/mine --out release --name Photo --author 'Jane Doe' \\\n"
        "      --license CC-BY-4.0 --description 'Upscales photographs.' --tags photo \\\n"
        "      --url https://huggingface.co/jane-doe/Photo/resolve/main",
        _publish,
        option("run_folder", "RUN", "run folder, also one of a comparison's", type=Path),
        option("--out", "DIR", "the release's folder, which does not exist yet", type=Path, required=True),
        option("--name", "NAME", "of the network, without its scale: letters, digits, hyphens"),
        option("--author", "NAME", "author, or several", nargs="+"),
        option("--license", "SPDX", "licence of the weights, such as Apache-2.0 or CC-BY-4.0"),
        option("--description", "MARKDOWN", "what it is for"),
        option("--tags", "TAG", "OpenModelDB's tags, such as photo or general-upscaler", nargs="+"),
        option("--url", "URL", "where the folder's files will be, without their names"),
        option("--pretrained", "ID|none", "OpenModelDB's id of the network that the run started from"),
        option("--to", None, "also export to these", nargs="+", choices=("onnx", "ncnn", "openvino")),
        option("--precision", None, "of what is exported (fp32)", nargs="+", choices=("fp32", "fp16", "bf16")),
        option("--samples", "SRC", "HR images to show (those that the run was scored on)", nargs="+"),
        *NETWORK,
    )


def _publish(args: argparse.Namespace) -> None:
    from eco_fast.interop.publish import publish
    from eco_fast.interop.release import Declaration

    said = {name: value for name in vars(Declaration()) if (value := getattr(args, name))}
    written = publish(
        args.run_folder,
        args.out,
        Declaration(**said),
        formats=args.to or (),
        precisions=args.precision or ("fp32",),
        samples=args.samples or (),
        tile=checked_tile(args),
        device=args.device,
    )
    print(f"{len(written)} files written to {args.out}")
