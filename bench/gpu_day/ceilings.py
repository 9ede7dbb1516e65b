"""What the machine is, and what it can do at best."""

import os
import shutil
import subprocess
import time
from functools import partial
from importlib.metadata import PackageNotFoundError, version

import torch

from bench.gpu_day.day import DEVICE, Day
from bench.gpu_day.timing import device_seconds, graph_seconds, host_seconds
from eco_fast.config import Config, Train
from eco_fast.training.ceilings import convolution_flops, convolution_parts, copying
from eco_fast.training.run_folder import environment
from eco_fast.utils.device import cuda_of_driver, device_name

PACKAGES = ("torch", "triton", "numpy", "nvidia-dali-cuda130", "nvidia-dali-cuda120")
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32}
CONVOLUTIONS = ((64, 16), (64, 128), (256, 128))
"""Channels and batch of those measured."""
LAUNCHES = 400  # about those of a step of EDSR-baseline


def note_facts(day: Day) -> None:
    """Names and versions; the speed of the host's Python."""
    properties = torch.cuda.get_device_properties(DEVICE)
    turns = 1_000_000
    began = time.perf_counter()
    for _ in range(turns):
        pass
    day.results["facts"] = {
        "date": time.strftime("%Y-%m-%d"),
        "gpu": properties.name,
        "capability": f"sm_{properties.major}{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_gb": properties.total_memory / 1e9,
        "l2_mb": properties.L2_cache_size / 1e6,
        "driver": _first_line("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "cuda_of_driver": cuda_of_driver(),
        "torch": torch.__version__,
        "packages": {name: _version(name) for name in PACKAGES},
        "commit": environment(Config(train=Train(device=DEVICE)))["commit"],
        "gcc": _first_line("gcc", "--version"),
        "git": _first_line("git", "--version"),
        "cpu": device_name("cpu"),
        "cores": len(os.sched_getaffinity(0)),
        "ns_per_python_loop": 1e9 * (time.perf_counter() - began) / turns,
    }
    print(day.results["facts"], flush=True)
    day.check("the driver says which CUDA it is for", cuda_of_driver(), 12000, 99000)


def measure_ceilings(day: Day) -> None:
    """Copying, matrix products, convolutions and launches."""
    size = (1 << 24) if day.rehearse else (2 << 30)
    day.ceiling("copy_gb_per_s", 2 * size / device_seconds(copying(size, DEVICE)) / 1e9)
    empty = partial(torch.cuda._sleep, 1)  # noqa: SLF001 - the shortest kernel that torch has
    day.ceiling("launch_by_host_us", 1e6 * host_seconds(lambda: [empty() for _ in range(LAUNCHES)]) / LAUNCHES)
    day.ceiling("launch_in_graph_us", 1e6 * graph_seconds([empty] * LAUNCHES))
    side = 512 if day.rehearse else 8192
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    for name, dtype in DTYPES.items():
        first, second = (torch.randn(side, side, device=DEVICE, dtype=dtype) for _ in range(2))
        seconds = device_seconds(lambda first=first, second=second: torch.mm(first, second))  # type: ignore[misc]
        day.ceiling(f"mm_{name}_tflops", 2 * side**3 / seconds / 1e12)
        for channels, batch in CONVOLUTIONS:
            flops = convolution_flops(channels, channels, batch)
            for part, work in convolution_parts(channels, channels, batch, DEVICE, dtype).items():
                day.ceiling(f"conv_{channels}_b{batch}_{name}_{part}_tflops", flops / device_seconds(work) / 1e12)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _first_line(*command: str) -> str | None:
    """What a program says first, or None where it is not there."""
    if shutil.which(command[0]) is None:
        return None
    said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return said.partition("\n")[0].strip()
