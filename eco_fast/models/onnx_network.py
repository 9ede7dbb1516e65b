"""Exported ONNX files as networks: onnxruntime runs them, so that what is shipped can be applied and scored.

They run on the CPU, wherever the images are.
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from eco_fast.models.network import Network
from eco_fast.utils.optional import optional

ONNX_FACTS = "eco_fast"
"""Our key in an ONNX file's metadata: what `Network` knows besides the graph, as JSON."""


class OnnxNetwork(Network):
    """A file of `eco-fast export --to onnx`.

    Args:
        path: the file.

    Raises:
        ValueError: onnxruntime is missing or cannot run the file, or `eco-fast export` has not written it.
    """

    architecture = "onnx"
    compiled_on = ()

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise ValueError(f"{path}: there is no such checkpoint")
        self._session, facts = _open(path)
        super().__init__(facts["scale"])
        self.grid, self.tile, self._facts = facts["grid"], facts["tile"], facts
        self.place = nn.Parameter(torch.empty(0), requires_grad=False)  # of no use but to tell a device
        (self._input,) = self._session.get_inputs()
        self._io = torch.float16 if self._input.type == "tensor(float16)" else torch.float32

    @property
    def halo(self) -> int:
        """That of the network which was exported."""
        return int(self._facts["halo"])

    def forward(self, lr: Tensor) -> Tensor:
        """Float [N, 3, h, w], 0..1, to float32 [N, 3, scale*h, scale*w], about 0..1. Any h and w."""
        images = lr.detach().to("cpu", self._io).contiguous().numpy()
        (sr,) = self._session.run(None, {self._input.name: images})
        return torch.from_numpy(sr).to(lr.device, torch.float32)


def onnx_session(content: bytes, *, optimised: bool = True) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch has."""
    runtime = optional("onnxruntime", "running ONNX files", "export")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    if not optimised:
        options.graph_optimization_level = runtime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return runtime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _open(path: Path) -> tuple[Any, dict[str, Any]]:
    optional("onnxruntime", f"{path}: an ONNX file", "export")
    try:
        session = onnx_session(path.read_bytes())
    except OSError:
        raise
    except Exception as error:  # of a dozen classes, none of which is public
        if "NOT_IMPLEMENTED" in str(error):
            raise ValueError(f"{path}: onnxruntime has not all of its operators for CPUs, as in bf16") from error
        raise ValueError(f"{path}: damaged, or not an ONNX file") from error
    facts = session.get_modelmeta().custom_metadata_map.get(ONNX_FACTS)
    if facts is None:
        raise ValueError(f"{path}: expected a file of `eco-fast export --to onnx`, got one that another program wrote")
    return session, json.loads(facts)
