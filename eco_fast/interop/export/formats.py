"""The formats that there are, and the combinations of format, precision, opset and network that exist."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from eco_fast.interop.export import ncnn_files, onnx_file, openvino_files, safetensors_file
from eco_fast.interop.export.planned_file import DTYPES, PlannedFile, Runner
from eco_fast.models import Network

OPSETS = (17, 20, 22)
BF16_OPSET = 22  # in earlier ones a convolution has no bfloat16


@dataclass(frozen=True)
class FileFormat:
    """How files of a format come to be.

    Attributes:
        precisions: that its files may have.
        needs: the libraries, by the names that Python imports them by; its runtime is the last.
        write: writes a file, and those that belong to it, of a name without suffix.
        run: opens them in their own runtime.
        suffix: ends the names of its files, before the suffix.
    """

    precisions: tuple[str, ...]
    needs: tuple[str, ...]
    write: Callable[[PlannedFile, Path], list[Path]]
    run: Callable[[PlannedFile, list[Path]], Iterator[Runner]]
    suffix: str = ""


FORMATS = {
    "onnx": FileFormat(
        ("fp32", "fp16", "bf16"), ("onnx", "onnxslim", "onnxruntime"), onnx_file.write_onnx, onnx_file.run_onnx
    ),
    "ncnn": FileFormat(("fp32", "fp16"), ("pnnx", "ncnn"), ncnn_files.write_ncnn, ncnn_files.run_ncnn),
    "openvino": FileFormat(
        ("fp32", "fp16"),
        ("onnx", "openvino"),
        openvino_files.write_openvino,
        openvino_files.run_openvino,
        suffix="_openvino",  # for its .bin and ncnn's would be one file
    ),
    "safetensors": FileFormat(
        ("fp32", "fp16", "bf16"), (), safetensors_file.write_safetensors, safetensors_file.run_safetensors
    ),
}


def planned_files(
    network: Network,
    formats: list[str],
    precisions: list[str],
    opset: int | None,
    io: str,
    input_name: str,
) -> Iterator[tuple[str, PlannedFile]]:
    """Each file's format, and what it is to hold; the arguments are those of `export`.

    Raises:
        ValueError: a format, precision or opset that there is not, or that do not go together; says what does.
    """
    _check(opset, io, input_name)
    for name, precision in product(formats, precisions):
        reason = why_not(network, name, precision)
        if reason is None and name == "onnx" and precision == "bf16":
            if opset not in (None, BF16_OPSET):
                reason = f"bf16 ONNX needs --opset {BF16_OPSET}, before which convolutions have no bfloat16"
            elif io == "same":
                reason = "bf16 input and output would round the images by half a grey level; leave --io at fp32"
        if reason is not None:
            raise ValueError(reason)
        same = name == "onnx" and io == "same"
        opset_of_file = opset or (BF16_OPSET if precision == "bf16" else OPSETS[0])
        yield (
            name,
            PlannedFile(network, precision, opset_of_file, input_name, DTYPES[precision] if same else torch.float32),
        )


def why_not(network: Network, name: str, precision: str) -> str | None:
    """Why there is no file of this format and precision for a network, or None."""
    if name not in FORMATS:
        return f"--to: expected {', '.join(FORMATS)}, got {name!r}"
    if precision not in DTYPES:
        return f"--precision: expected {', '.join(DTYPES)}, got {precision!r}"
    if precision not in FORMATS[name].precisions:
        return f"{name} files have {' or '.join(FORMATS[name].precisions)}, not {precision}; leave one of them out"
    if name == "ncnn" and network.grid > 1:
        return (
            f"ncnn cannot pad an image to a multiple of {network.grid} pixels, as this {network.architecture} does; "
            "take onnx or openvino"
        )
    return None


def _check(opset: int | None, io: str, input_name: str) -> None:
    if opset not in (None, *OPSETS):
        raise ValueError(f"--opset: expected {', '.join(map(str, OPSETS))}, got {opset}")
    if io not in ("fp32", "same"):
        raise ValueError(f"--io: expected fp32 or same, got {io!r}")
    if not input_name.isidentifier() or input_name == "output":
        raise ValueError(f"--input-name: expected a name such as input or data, got {input_name!r}")
