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


def write_ncnn(planned: PlannedFile, path: Path) -> list[Path]:
    """Write `path`.param and `path`.bin.

    Raises:
        ValueError: pnnx fails; with its last line.
    """
    import pnnx  # noqa: PLC0415 - optional

    plain = replace(planned, precision="fp32").plain()
    example = plain.example()
    height, width = example.shape[2:]
    with tempfile.TemporaryDirectory() as folder:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in `traced`
            torch.jit.trace(plain, example, check_trace=False).save(f"{folder}/net.pt")  # type: ignore[no-untyped-call]
        command = [
            *(pnnx.EXEC_PATH, "net.pt", f"fp16={int(planned.precision == 'fp16')}"),
            f"inputshape=[1,3,{height},{width}]f32",
            f"inputshape2=[1,3,{height + 3},{width + 5}]f32",  # of which pnnx learns that sizes vary
        ]
        made = Path(folder, "net.ncnn.param")
        answer = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
        if answer.returncode or not made.exists():
            lines = answer.stderr.splitlines() or [f"exit status {answer.returncode}"]
            raise ValueError(f"pnnx failed: {lines[-1]}")
        names = {**BLOBS, "in0": planned.input_name}
        param = re.sub(r"\b(in0|out0)\b", lambda found: names[found[1]], made.read_text(encoding="ascii"))
        weights = Path(folder, "net.ncnn.bin").read_bytes()
    targets = [path.with_name(f"{path.name}.{suffix}") for suffix in ("param", "bin")]
    for target, content in zip(targets, (param.encode(), weights), strict=True):
        write_bytes(target, content)
    return targets


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
