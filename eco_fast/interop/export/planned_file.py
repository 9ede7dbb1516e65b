"""What a file is to hold, and how it is run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from eco_fast.interop.export.plain import PlainNetwork
from eco_fast.models import Network

Runner = Callable[[Tensor], Tensor]
"""A file's own runtime: float32 [N, 3, h, w], 0..1, to float32 [N, 3, scale*h, scale*w]."""
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class PlannedFile:
    """One file."""

    network: Network
    precision: str
    """fp32, fp16 or bf16."""
    opset: int
    """Of ONNX."""
    input_name: str
    """Of the graph's input; its output is called output."""
    io: torch.dtype
    """Of the input and output of ONNX files."""

    def plain(self) -> PlainNetwork:
        """The network in its plain form."""
        return PlainNetwork(self.network, self.precision, self.io)
