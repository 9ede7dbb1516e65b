"""What the device reaches: a copy, and 3x3 convolutions in each precision and memory format, head and tail too."""

from functools import partial

import torch

from eco_fast.training.ceilings import PATCH_SIDE, convolution_flops, convolution_parts, copying
from eco_fast.training.doctor.findings import Check, Fact, Finding, Notes, Subject
from eco_fast.training.profiling import best_seconds
from eco_fast.utils.device import device_name, pick_device

COMPUTED_IN = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
LAYOUTS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
CONVOLUTIONS = {"body": (64, 64), "head": (3, 64), "tail": (64, 3)}
"""Channels in and out: EDSR-baseline's."""
BATCH = {"cpu": 1, "cuda": 64}
COPIED = {"cpu": 1 << 26, "cuda": 1 << 30}  # bytes
ABSURD = 30
"""Times as long as a copy of its bytes: what the head or the tail takes on a GPU where cuDNN has no code for it."""


def checks(subject: Subject) -> list[Check]:
    """The copy, and each precision that the device has."""
    device = pick_device(subject.device)
    old = device == "cpu" or torch.cuda.get_device_capability(device) < (8, 0)
    names = [name for name in COMPUTED_IN if not (old and name == "tf32")]
    return [_named("copy", partial(_copy, device)), *(_named(name, partial(_convolve, device, name)) for name in names)]


def _named(name: str, check: Check) -> Check:
    check.__name__ = name
    return check


def _copy(device: str, _: Subject) -> Notes:
    yield Fact("device", device_name(device))
    yield Fact("reads and writes", _bytes_per_second(device) / 1e9, "GB/s")


def _convolve(device: str, name: str, _: Subject) -> Notes:
    """Forward and backward; the head has no gradient of its input."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = name == "tf32"
    torch.backends.cudnn.benchmark = True
    kind, dtype = torch.device(device).type, COMPUTED_IN[name]
    copied = _bytes_per_second(device) if kind == "cuda" else 0.0
    for layout, order in LAYOUTS.items():
        for place, (inputs, outputs) in CONVOLUTIONS.items():
            parts = convolution_parts(inputs, outputs, BATCH[kind], device, dtype, order)
            if place == "head":
                del parts["dgrad"]
            seconds = {part: best_seconds(work, device) for part, work in parts.items()}
            flops = len(parts) * convolution_flops(inputs, outputs, BATCH[kind])
            yield Fact(f"{place}, {layout}", flops / sum(seconds.values()) / 1e9, "GFLOP/s")
            compulsory = (inputs + outputs) * BATCH[kind] * PATCH_SIDE**2 * dtype.itemsize
            for part, took in seconds.items():
                if place != "body" and layout == "channels_last" and took * copied > ABSURD * compulsory:
                    yield Finding(
                        f"{part} of the {place} ({inputs} to {outputs} channels, {name}) takes "
                        f"{took * copied / compulsory:.0f} times as long as a copy of its bytes",
                        f"this cuDNN has no fast code for so few channels, so the {place} slows every step down",
                        "pip install --upgrade nvidia-cudnn-cu12 (or -cu13, as pip list names it)",
                    )


def _bytes_per_second(device: str) -> float:
    size = COPIED[torch.device(device).type]
    return 2 * size / best_seconds(copying(size, device), device)
