"""OpenVINO's two files, which OpenVINO itself makes of the ONNX file in float32.

Its fp16 files hold float16 weights of a float32 graph. A device computes in the precision that it likes best, unless it
is told otherwise: here, to compute in float32.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from eco_fast.interop.export.onnx_file import traced
from eco_fast.interop.export.planned_file import PlannedFile, Runner


def write_openvino(planned: PlannedFile, path: Path) -> list[Path]:
    """Write `path`.xml and `path`.bin."""
    import openvino  # noqa: PLC0415 - optional

    model = openvino.Core().read_model(traced(replace(planned, precision="fp32")))
    target = path.with_name(f"{path.name}.xml")
    openvino.save_model(model, target, compress_to_fp16=planned.precision == "fp16")
    return [target, target.with_suffix(".bin")]


def run_openvino(planned: PlannedFile, paths: list[Path]) -> Iterator[Runner]:
    """OpenVINO's CPU plugin in float32."""
    import openvino  # noqa: PLC0415 - optional

    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    model = openvino.Core().compile_model(paths[0], "CPU", settings)

    def run(images: Tensor) -> Tensor:
        return torch.from_numpy(model({planned.input_name: images.numpy()})["output"].copy())

    yield run
