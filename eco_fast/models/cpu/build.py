"""The C++ of this folder, for float32 on a CPU: compiled at first use."""

import ctypes
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from eco_fast.utils.device import cpp_compiler, why_not_compile

COMPILED = why_not_compile("cpu") is None
PARTS = 16  # sums of a weight's gradient: as many on any number of threads, so that the bits are the same


def call(source: str, function: str, tensors: Sequence[Tensor | None], numbers: Sequence[int], **sizes: int) -> None:
    """Call a function with the memory of tensors, numbers, and how many threads it may take.

    Args:
        source: the file's name, without its suffix.
        function: in it.
        tensors: float32 and contiguous; None: no memory.
        numbers: other arguments.
        sizes: what the file is compiled for.

    Raises:
        RuntimeError: the compiler fails; with what it says.
    """
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    counts = [ctypes.c_long(number) for number in (*numbers, torch.get_num_threads())]
    getattr(_library(source, **sizes), function)(*pointers, *counts)


@cache
def _library(source: str, **sizes: int) -> ctypes.CDLL:
    """The compiled functions; a second's work."""
    options = ["-O3", "-march=native", "-fopenmp", "-fPIC", "-shared", *(f"-D{n}={size}" for n, size in sizes.items())]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / f"{source}.so"
        command = [str(cpp_compiler()), *options, str(Path(__file__).with_name(f"{source}.cpp")), "-o", str(out)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {result.stderr}")
        return ctypes.CDLL(str(out))
