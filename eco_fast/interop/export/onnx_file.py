"""ONNX files: written by torch's tracing exporter, folded and slimmed by onnxslim, checked by onnx, run by onnxruntime.

The tracing exporter writes the opset that is asked for; its successor writes 18 and converts, and fails on the padding.
"""

import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eco_fast.interop.export.planned_file import PlannedFile, Runner
from eco_fast.interop.export.rounding import rounded_model
from eco_fast.models.onnx_network import ONNX_FACTS, onnx_session
from eco_fast.utils.files import write_bytes

TRACED_OPSET = 20  # the newest that torch's tracing exporter knows


def traced(planned: PlannedFile) -> bytes:
    """The ONNX file as torch writes it, of opset `TRACED_OPSET` at most."""
    plain = planned.plain()
    sizes = {0: "batch", 2: "height", 3: "width"}
    sizes_of_output = {0: "batch", 2: "output_height", 3: "output_width"}
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # branches on the example's size, see `PlainNetwork.example`; deprecation
        torch.onnx.export(
            plain,
            (plain.example(),),
            file,  # type: ignore[arg-type]
            dynamo=False,
            opset_version=min(planned.opset, TRACED_OPSET),
            input_names=[planned.input_name],
            output_names=["output"],
            dynamic_axes={planned.input_name: sizes, "output": sizes_of_output},
        )
    return file.getvalue()


def write_onnx(planned: PlannedFile, path: Path) -> list[Path]:
    """Write and check `path`.onnx.

    Raises:
        ValueError: the graph holds an operator that is not ONNX's own.
    """
    import onnx  # noqa: PLC0415 - optional
    import onnxslim  # noqa: PLC0415 - optional

    model = onnxslim.slim(onnx.load_from_string(traced(planned)))
    if planned.opset > TRACED_OPSET:
        model = onnx.version_converter.convert_version(model, planned.opset)
    network = planned.network
    facts = {"scale": network.scale, "grid": network.grid, "tile": network.tile, "halo": network.halo}
    onnx.helper.set_model_props(model, {ONNX_FACTS: json.dumps(facts)})
    onnx.checker.check_model(model, full_check=True)
    if others := {node.domain for node in model.graph.node} - {"", "ai.onnx"}:
        raise ValueError(
            f"operators of {', '.join(sorted(others))} are left in the graph, which only one runtime knows"
        )
    target = path.with_name(f"{path.name}.onnx")
    write_bytes(target, model.SerializeToString())
    return [target]


def run_onnx(planned: PlannedFile, paths: list[Path]) -> Iterator[Runner]:
    """Onnxruntime on the file; in 16 bits also with every value rounded, as GPUs do it.

    See `rounded_model`.
    """
    import onnx  # noqa: PLC0415 - optional

    content = paths[0].read_bytes()
    if planned.precision != "bf16":
        yield _run(onnx_session(content), planned)
    if planned.precision != "fp32":
        rounded = rounded_model(onnx.load_from_string(content))
        yield _run(onnx_session(rounded.SerializeToString(), optimised=False), planned)


def _run(session: Any, planned: PlannedFile) -> Runner:
    def run(images: Tensor) -> Tensor:
        (sr,) = session.run(None, {planned.input_name: images.to(planned.io).numpy()})
        return torch.from_numpy(sr).float()

    return run
