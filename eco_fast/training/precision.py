"""What the network computes in."""

import os
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch

from eco_fast.config import Train


@dataclass(frozen=True)
class Precision:
    """A precision policy. Weights, gradients, optimizer state, input and loss are float32 under all of them."""

    name: str
    """fp32, tf32, bf16 or fp16."""

    @property
    def dtype(self) -> torch.dtype | None:
        """What convolutions and matrix products compute in, or None for float32."""
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(self.name)

    @property
    def scales_gradients(self) -> bool:
        """Whether gradients would underflow without a factor."""
        return self.name == "fp16"

    def autocast(self, device_type: str) -> AbstractContextManager[None]:
        """The region that the network runs in."""
        return nullcontext() if self.dtype is None else torch.autocast(device_type, self.dtype)


def choose_precision(train: Train, device: str) -> Precision:
    """The recipe's policy on a device.

    auto is bf16 on GPUs from sm_80 (A6000, H100) on, fp16 on older ones (TITAN RTX), fp32 on a CPU.

    Raises:
        ValueError: the device cannot do it; says what it can.
    """
    name, capability = train.precision, (0, 0)
    if device.startswith("cuda"):
        capability = torch.cuda.get_device_capability(device)
    if name == "auto":
        name = "fp32" if device == "cpu" else "bf16" if capability >= (8, 0) else "fp16"
    if name == "tf32" and capability < (8, 0):
        raise ValueError(f"train.precision=tf32 needs a GPU of sm_80 or newer, the device is {device}; take fp32")
    if name == "bf16" and device != "cpu" and capability < (8, 0):
        raise ValueError(f"train.precision=bf16 needs a GPU of sm_80 or newer, {device} is older; take fp16 or auto")
    return Precision(name)


def set_precision(train: Train, device: str) -> Precision:
    """`choose_precision`, with torch's switches set accordingly; raises the same."""
    precision = choose_precision(train, device)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision.name == "tf32"
    if torch.are_deterministic_algorithms_enabled() != train.deterministic:  # setting it imports the compiler
        torch.use_deterministic_algorithms(train.deterministic)
    if train.deterministic:  # torch then refuses matrix products on a GPU unless cuBLAS is told to repeat itself
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.backends.cudnn.benchmark = not train.deterministic  # patches keep their size: the search pays once
    return precision
