"""Weights as safetensors, under the keys of the authors' code, which chaiNNer, ComfyUI and spandrel know.

In 16 bits the weights are rounded; buffers, such as the mean of the images, stay as they are.
"""

from collections.abc import Iterator
from pathlib import Path

import torch

from eco_fast.interop.export.planned_file import DTYPES, PlannedFile, Runner
from eco_fast.models import description, load_network, save_weights


def write_safetensors(planned: PlannedFile, path: Path) -> list[Path]:
    """Write `path`.safetensors."""
    weights = {name for name, _ in planned.network.named_parameters()}
    dtype, target = DTYPES[planned.precision], path.with_name(f"{path.name}.safetensors")
    state = {
        key: value.to("cpu", dtype if key in weights else value.dtype)
        for key, value in planned.network.state_dict().items()
    }
    save_weights(target, state, description(planned.network))
    return [target]


def run_safetensors(_: PlannedFile, paths: list[Path]) -> Iterator[Runner]:
    """The network that `load_network` makes of the file, which computes in float32."""
    network = load_network(paths[0], "cpu")
    yield torch.inference_mode()(network)
