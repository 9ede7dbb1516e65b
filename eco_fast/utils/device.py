"""The one place that asks what the machine can do."""

import ctypes
import os
import platform
import shlex
import shutil
import subprocess
import sysconfig
import tempfile
from functools import cache
from pathlib import Path

import torch

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h
KEPT_BYTES = 1 << 30  # what lies free beyond so much at the heap's end still goes back to the system
GRAPH_BYTES = 1 << 17  # of what DALI writes: more than the source of a graph
MAPPED_BYTES = 32 << 20  # so do blocks of this size, as by default: holes among them would cost half the memory again


def pick_device(wanted: str) -> str:
    """Resolve "auto", and refuse a device that is not there.

    Raises:
        ValueError: unknown device, none such on this machine, or a GPU without the C compiler that Triton needs.
    """
    if wanted == "auto":
        wanted = "cuda" if torch.cuda.is_available() else "cpu"
    if wanted == "cuda":
        wanted = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # torchrun's number of this process on its machine
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ValueError(f"train.device: expected auto, cpu, cuda or cuda:N, got {wanted!r}") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(
            f"train.device: {wanted} is asked for, but this machine shows {torch.cuda.device_count()} GPUs"
        )
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"train.device: expected auto, cpu, cuda or cuda:N, got {wanted!r}")
    if device.type == "cuda":
        compiler = c_compiler()
        if compiler is None:
            raise ValueError(
                f"train.device: on {wanted} Triton builds its launchers with a C compiler, compiled or not, and found "
                "neither gcc nor clang; install one (apt install gcc), name yours in $CC, or take train.device=cpu"
            )
        if why_broken := why_not_build(compiler):
            raise ValueError(
                f"train.device: on {wanted} Triton builds its launchers with a C compiler, compiled or not, but "
                f"{why_broken}; mend that, or take train.device=cpu"
            )
        torch.cuda.set_device(device)
    return wanted


def tune_malloc(device: str) -> None:
    """On a CPU with glibc: let freed memory stay with the process, for the next step.

    By default it goes back to the system in pieces and is fetched again page by page: thousands of page faults in a
    step, a sixth of the quick start's time (bench/README.md).
    """
    if device == "cpu" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)
        libc.mallopt(M_MMAP_THRESHOLD, MAPPED_BYTES)


def why_not_compile(device: str) -> str | None:
    """The reason why torch.compile cannot work here, or None."""
    if device != "cpu":
        return None
    compiler = cpp_compiler()
    if compiler is None:
        return "no C++ compiler was found (g++, clang++ or $CXX)"
    return why_not_build(compiler, "-fopenmp", suffix=".cpp")


@cache
def why_not_build(compiler: str, *options: str, suffix: str = ".c") -> str | None:
    """The reason why what torch and Triton generate cannot be built and loaded here, or None: it is tried once."""
    include = [f"-I{sysconfig.get_path(kind)}" for kind in ("include", "platinclude")]
    try:
        where = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
        if where:
            Path(where).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=where) as folder:
            source, made = Path(folder, f"probe{suffix}"), Path(folder, "probe.so")
            source.write_text("#include <Python.h>\n", encoding="ascii")
            command = [*shlex.split(compiler), *include, "-shared", "-fPIC", *options, str(source), "-o", str(made)]
            answer = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
            if answer.returncode:
                lines = answer.stderr.splitlines()
                reason = next((one for one in lines if "error" in one), f"exit status {answer.returncode}")
                return f"{compiler} fails ({reason.strip()})"
            ctypes.CDLL(str(made))
    except OSError as error:  # a compiler that cannot be started; a folder that is full, read-only or noexec
        return f"what {compiler} makes cannot be used ({error})"
    return None


def c_compiler() -> str | None:
    """The machine's C compiler, as Triton looks for it."""
    return os.environ.get("CC") or shutil.which("gcc") or shutil.which("clang")


def cpp_compiler() -> str | None:
    """Path of the machine's C++ compiler."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")


def why_not_dali(device: str) -> str | None:
    """The reason why DALI cannot run here, with what to install, or None."""
    try:
        import nvidia.dali  # noqa: PLC0415 - optional, and slow to import
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and (error.name or "").startswith("nvidia"):
            return "DALI is not installed (pip install 'eco-fast[dali]')"
        return f"DALI cannot be imported ({error}); pip install --force-reinstall 'eco-fast[dali]'"
    built, driver = nvidia.dali.__cuda_version__ // 1000, cuda_of_driver() // 1000
    if device.startswith("cuda") and driver < built:
        return (
            f"the GPU's driver is for CUDA {driver}, this DALI for CUDA {built}; update the driver (r580 or newer for "
            "CUDA 13), or pip uninstall nvidia-dali-cuda130 and pip install 'eco-fast[dali-cuda12]'"
        )
    try:
        with tempfile.NamedTemporaryFile() as file:
            file.write(bytes(GRAPH_BYTES))
    except OSError as error:
        return (
            f"DALI writes its graphs into the temporary folder, which cannot be written ({error.strerror or error}); "
            "make room there, or name another one in $TMPDIR"
        )
    return None


def cuda_of_driver() -> int:
    """Newest CUDA version that the driver supports, 13020 for 13.2; 0 without a driver."""
    version = ctypes.c_int()
    try:
        ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(version))
    except OSError:
        return 0
    return version.value


def device_name(device: str) -> str:
    """For people and for environment.json."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - a device file, not a path to handle
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        names = []
    return names[0] if names else "unknown processor"
