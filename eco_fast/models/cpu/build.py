"""The C++ of this folder, for float32 on a CPU: compiled at first use, once per machine.

The compiled files lie in $XDG_CACHE_HOME/eco-fast, or ~/.cache/eco-fast, under a hash of all that they depend on: the
source, the options, the compiler, and what `-march=native` makes of the processor. Where they cannot be kept there,
every process compiles for itself; where they cannot be compiled, torch takes over. Either is said in one sentence.
"""

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from eco_fast.utils.device import cpp_compiler
from eco_fast.utils.files import write_atomically
from eco_fast.utils.locks import file_lock

OPTIONS = ("-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
MACROS = ("-march=native", "-dM", "-E", "-x", "c++", os.devnull)  # prints the compiler's version and the CPU's features
SAID: set[str] = set()
PARTS = 16  # sums of a weight's gradient: as many on any number of threads, so that the bits are the same


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def available(source: str, **sizes: int) -> bool:
    """Whether the functions of a file can be called; tried at the first question.

    Args:
        source: the file's name, without its suffix.
        sizes: what the file is compiled for.
    """
    return library(source, **sizes) is not None


def call(source: str, function: str, tensors: Sequence[Tensor | None], numbers: Sequence[int], **sizes: int) -> None:
    """Call a function with the memory of tensors, numbers, and how many threads it may take.

    Args:
        source: the file's name, without its suffix; it must be `available` for these sizes.
        function: in it.
        tensors: float32 and contiguous; None: no memory.
        numbers: other arguments.
        sizes: what the file is compiled for.
    """
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    counts = [ctypes.c_long(number) for number in (*numbers, torch.get_num_threads())]
    getattr(library(source, **sizes), function)(*pointers, *counts)


@cache
def library(source: str, **sizes: int) -> ctypes.CDLL | None:
    """The compiled functions of a file, or None where they cannot be had; the reason is printed."""
    path = Path(__file__).with_name(f"{source}.cpp")
    try:
        command = [_compiler(), *OPTIONS, *(f"-D{name}={size}" for name, size in sizes.items()), str(path)]
        try:
            return ctypes.CDLL(str(_cached(command, path)))
        except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: there is no home folder
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, f"{source}.so")
                _run([*command, "-o", str(out)])
                made = ctypes.CDLL(str(out))
            _say("each process compiles eco-fast's own C++ anew, for a second, as it cannot be kept", error)
            return made
    except (OSError, subprocess.SubprocessError) as error:
        _say("eco-fast's own C++ is not used, so torch takes over and SwinIR takes about twice as long", error)
        return None


def _compiler() -> str:
    if (found := cpp_compiler()) is None:
        raise FileNotFoundError("no C++ compiler was found (g++, clang++ or $CXX)")
    return found


def _cached(command: list[str], source: Path) -> Path:
    """The file that the command makes; of processes that ask at once, one makes it."""
    parts = [source.read_bytes(), *map(str.encode, command), _run([command[0], *MACROS])]
    key = hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]
    cache_home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    made = Path(cache_home, "eco-fast", f"{source.stem}-{key}.so")
    if not made.exists():
        with file_lock(made.with_suffix(".lock"), wait=True):
            if not made.exists():
                with tempfile.TemporaryDirectory() as folder:
                    out = Path(folder, made.name)
                    _run([*command, "-o", str(out)])
                    write_atomically(made, lambda file: file.write(out.read_bytes()))
    return made


def _run(command: list[str]) -> bytes:
    """What a command prints.

    Raises:
        SubprocessError: it fails; with the first line that says why.
    """
    result = subprocess.run(command, capture_output=True, check=False)
    if result.returncode:
        lines = result.stderr.decode(errors="replace").splitlines()
        reason = next((line for line in lines if "error" in line), f"exit status {result.returncode}")
        raise subprocess.SubprocessError(f"{command[0]}: {reason}")
    return result.stdout


def _say(consequence: str, reason: Exception) -> None:
    """One sentence, once per process."""
    if consequence not in SAID:
        SAID.add(consequence)
        print(f"{consequence}: {reason}", flush=True)
