"""What decides which kernels to write next: ways of torch's own that a recipe does not take, and hardware counters."""

import csv
import shutil
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import flex_attention

from bench.gpu_day.day import DEVICE, Day
from bench.gpu_day.plan import OPTIONS
from bench.gpu_day.timing import device_seconds
from eco_fast.training.bench.images import bench_images
from eco_fast.training.bench.ways import whole
from eco_fast.training.profiling import Work, time_of

COUNTERS = ("dram__bytes_read.sum", "dram__bytes_write.sum", "gpu__time_duration.sum")
OURS = (
    "regex:(cut_crops|downsample_blend|blended_loss|sum|moments|update|find_nonfinite|decide|attend|(query|key)_gradients)"
    "_?.*kernel"
)
WINDOWS, HEADS, TOKENS, CHANNELS = 1152, 6, 64, 10
"""Of a block of SwinIR-small, batch 32."""


def try_options(day: Day) -> None:
    """Each on its own: torch may not have it for these shapes."""
    *names, autotuned = OPTIONS
    makers = (
        partial(convolution_relu, fused=False),
        partial(convolution_relu, fused=True),
        partial(attention, flex=False),
        partial(attention, flex=True),
    )
    for name, make in zip(names, makers, strict=True):
        if day.has_time(name, 3):
            try:
                day.add("options", name=name, us=1e6 * device_seconds(make()))
            except (RuntimeError, ValueError, NotImplementedError, AssertionError) as error:
                day.add("options", name=name, us=None, error=f"{type(error).__name__}: {error}"[:500])
    if day.has_time(autotuned, 10):
        day.add("options", name=autotuned, us=1e6 * _autotuned(day))


def convolution_relu(*, fused: bool) -> Work:
    """A body's convolution of EDSR-baseline, batch 16."""
    image = torch.randn(16, 64, 48, 48, device=DEVICE, dtype=torch.bfloat16)
    image = image.contiguous(memory_format=torch.channels_last)
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, device=DEVICE, dtype=torch.bfloat16)
    layer.to(memory_format=torch.channels_last).requires_grad_(requires_grad=False)  # type: ignore[call-overload]
    if fused:
        shape = ([1, 1], [1, 1], [1, 1], 1)
        return lambda: torch.cudnn_convolution_relu(image, layer.weight, layer.bias, *shape)
    return lambda: layer(image).relu_()


def attention(*, flex: bool) -> Work:
    """Forward and backward of windows with a bias for each pair of places, padded to 16 channels as both want it."""
    q, k, v = (
        torch.randn(WINDOWS, HEADS, TOKENS, 16, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    bias = torch.randn(HEADS, TOKENS, TOKENS, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    inputs, upstream, scale = (q, k, v, bias), torch.randn_like(q), CHANNELS**-0.5
    if not flex:
        sdpa = partial(torch.nn.functional.scaled_dot_product_attention, q, k, v, bias, scale=scale)
        return lambda: torch.autograd.grad(sdpa(), inputs, upstream)

    def add_bias(score: Tensor, _: Tensor, head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return score + bias[head, row, column]

    compiled = torch.compile(flex_attention, dynamic=False)
    return lambda: torch.autograd.grad(compiled(q, k, v, score_mod=add_bias, scale=scale), inputs, upstream)


def _autotuned(day: Day) -> float:
    """Seconds of a step of EDSR-baseline with torch's own convolutions in Triton where they win."""
    patch = torch._inductor.config.patch({"max_autotune": True})  # noqa: SLF001 - has no public name
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        stack.enter_context(patch)
        recipe = day.recipe("edsr_baseline_x2_eco")
        images = bench_images(recipe, Path(folder) / "images")
        work = whole(recipe, images, DEVICE, Path(folder) / "run", stack).work
        for _ in range(6):
            work()
        return time_of(work, 10 if day.rehearse else 200, DEVICE)


def read_counters(day: Day) -> None:
    """Bytes that our kernels move, by the hardware's own count."""
    if shutil.which("ncu") is None:
        day.skip("counters: there is no ncu")
        return
    command = ["ncu", "--clock-control", "none", "--csv", "--metrics", ",".join(COUNTERS), "--kernel-name", OURS]
    command += ["--launch-count", "20", sys.executable, "-m", "bench.gpu_day.kernels"]
    done = subprocess.run(
        command, cwd=Path(__file__).parents[2], timeout=day.left_in_all(), capture_output=True, text=True, check=False
    )
    lines = done.stdout.splitlines()
    header = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    if header is None:
        raise RuntimeError(f"ncu said nothing of our kernels: {(done.stdout + done.stderr)[-2000:]}")
    for row in csv.DictReader(lines[header:]):
        value = float(row["Metric Value"].replace(",", ""))
        kernel = {"launch": int(row["ID"]), "kernel": row["Kernel Name"]}
        day.add("counters", **kernel, metric=row["Metric Name"], unit=row["Metric Unit"], value=value)
