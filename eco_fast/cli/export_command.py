"""The command that makes files for other runtimes."""

import argparse
from pathlib import Path

from eco_fast.cli.options import Commands, option


def add_export(commands: Commands) -> None:
    """Add it."""
    commands.add(
        "export",
        "Write a network for ONNX, ncnn, OpenVINO or as safetensors, and verify every file.",
        "eco-fast export runs/mine/checkpoints/best.safetensors --to onnx ncnn \\\n"
        "      --precision fp32 fp16 --name Mine --out exported",
        _export,
        option("checkpoint", "CHECKPOINT", "the network", type=Path),
        option("--to", "FORMAT", "onnx, ncnn, openvino, safetensors (onnx)", nargs="+", default=["onnx"]),
        option("--precision", "BITS", "fp32, fp16, bf16 (fp32)", nargs="+", default=["fp32"]),
        option("--opset", "N", "of ONNX: 17, 20 or 22 (17; 22 for bf16)", type=int),
        option("--io", "BITS", "of ONNX files' input and output: fp32 or same (%(default)s)", default="fp32"),
        option("--input-name", "NAME", "of the graph's input; upscayl wants data (%(default)s)", default="input"),
        option("--name", "NAME", "of the files, after the scale (the run folder's)"),
        option("--out", "DIR", "folder of the files (%(default)s)", type=Path, default=Path("exported")),
    )


def _export(args: argparse.Namespace) -> None:
    from eco_fast.interop.export import export

    export(
        args.checkpoint,
        args.out,
        formats=list(dict.fromkeys(args.to)),
        precisions=list(dict.fromkeys(args.precision)),
        opset=args.opset,
        name=args.name,
        io=args.io,
        input_name=args.input_name,
    )
