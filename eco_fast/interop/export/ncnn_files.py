"""ncnn's two files, by pnnx, its own converter from torch, run by its Python wheel.

ncnn has no batches, and its files have weights of float32 or float16; whether a program computes in 16 bits is the
program's choice. Here it computes in float32.
"""

import re
import subprocess
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from eco_fast.interop.export.planned_file import PlannedFile, Runner
from eco_fast.utils.files import write_bytes

BLOBS = {"in0": "input", "out0": "output"}
HALVES = 0x01306B47  # the word before weights of 16 bits; before those of 32 it is 0
WEIGHTS = dict.fromkeys(("Convolution", "ConvolutionDepthWise", "Deconvolution", "DeconvolutionDepthWise"), 6)
WEIGHTS["InnerProduct"] = 2
"""The number of the parameter that says how many weights a layer has."""


def write_ncnn(planned: PlannedFile, path: Path) -> list[Path]:
    """Write `path`.param and `path`.bin.

    Raises:
        ValueError: pnnx fails; with its last line.
    """
    import pnnx  # noqa: PLC0415 - optional

    plain = replace(planned, precision="fp32").plain()
    example = plain.example()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as in `traced`
        torch.jit.trace(plain, example, check_trace=False).save(f"{folder}/net.pt")  # type: ignore[no-untyped-call]
        param, weights = _convert(pnnx.EXEC_PATH, Path(folder), example, "fp16=0")
        if planned.precision == "fp16":
            weights = round_weights(param, weights, _convert(pnnx.EXEC_PATH, Path(folder), example, "fp16=1")[1])
    names = {**BLOBS, "in0": planned.input_name}
    param = re.sub(r"\b(in0|out0)\b", lambda found: names[found[1]], param)
    targets = [path.with_name(f"{path.name}.{suffix}") for suffix in ("param", "bin")]
    for target, content in zip(targets, (param.encode(), weights), strict=True):
        write_bytes(target, content)
    return targets


def round_weights(param: str, single: bytes, halves: bytes) -> bytes:
    """The file of 16-bit weights, each the nearest half: pnnx makes those below 6.1e-5 zero, where halves go to 6e-8.

    Both files are walked side by side. Biases and constants are float32 in either, and the same.

    Args:
        param: the text of the net.
        single: pnnx's file of float32 weights.
        halves: its file of 16-bit weights.

    Raises:
        ValueError: the files are not those of this net.
    """
    sizes = _weight_counts(param)
    exact, short = (np.frombuffer(content, "<u4") for content in (single, halves))
    made: list[bytes] = []
    while exact.size and short.size:
        same = min(exact.size, short.size)
        differs = np.flatnonzero(exact[:same] != short[:same])
        same = int(differs[0]) if differs.size else same
        made.append(exact[:same].tobytes())
        exact, short = exact[same:], short[same:]
        if differs.size:
            count = next(sizes, 0)
            if count == 0 or exact[0] != 0 or short[0] != HALVES:
                break
            rounded = np.zeros(-(-count // 2) * 2, "<f2")
            rounded[:count] = exact[1 : 1 + count].view("<f4")
            made += [short[:1].tobytes(), rounded.tobytes()]
            exact, short = exact[1 + count :], short[1 + rounded.size // 2 :]
    if exact.size or short.size:
        raise ValueError("pnnx's files of 16 and 32 bits do not match; take fp32")
    return b"".join(made)


def _weight_counts(param: str) -> Iterator[int]:
    for line in param.splitlines()[2:]:
        kind, _, *rest = line.split()
        if kind in WEIGHTS:
            yield next(int(one.split("=")[1]) for one in rest if one.startswith(f"{WEIGHTS[kind]}="))


def _convert(pnnx: str, folder: Path, example: Tensor, precision: str) -> tuple[str, bytes]:
    """What pnnx makes of `folder`/net.pt: the text of the net, and its weights."""
    height, width = example.shape[2:]
    sizes = [f"[1,3,{height},{width}]f32", f"[1,3,{height + 3},{width + 5}]f32"]  # two: they vary
    command = [pnnx, "net.pt", precision, f"inputshape={sizes[0]}", f"inputshape2={sizes[1]}"]
    answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    made = folder / "net.ncnn.param"
    if answer.returncode or not made.exists():
        lines = answer.stderr.splitlines() or [f"exit status {answer.returncode}"]
        raise ValueError(f"pnnx failed: {lines[-1]}")
    return made.read_text(encoding="ascii"), made.with_suffix(".bin").read_bytes()


def run_ncnn(planned: PlannedFile, paths: list[Path]) -> Iterator[Runner]:
    """Ncnn on the CPU in float32, image by image."""
    import ncnn  # noqa: PLC0415 - optional

    net = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = torch.get_num_threads()
    for option in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_storage"):
        setattr(net.opt, option, False)
    if net.load_param(str(paths[0])) or net.load_model(str(paths[1])):
        raise ValueError("ncnn cannot load it")

    def run(images: Tensor) -> Tensor:
        return torch.stack([one(image) for image in images])

    def one(image: Tensor) -> Tensor:
        mat = ncnn.Mat(*reversed(image.shape))
        np.array(mat, copy=False)[...] = image.numpy()  # a Mat of an array would point into it
        extractor = net.create_extractor()
        extractor.input(planned.input_name, mat)
        failed, result = extractor.extract("output")
        if failed:
            raise ValueError("ncnn cannot run it")
        return torch.from_numpy(np.array(result))

    yield run
