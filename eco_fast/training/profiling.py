"""What a step costs and what the device can do: work, time by stage, the device's own peak, memory."""

import copy
import itertools
import math
import resource
import time
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

STAGES = ("data", "forward", "backward", "optimizer", "step")  # the last one is a recorded step, in one piece
GIGA = 1e9
CLOCK_TICK = 0.5e-6  # seconds: what a GPU's events resolve
Work = Callable[[], object]
_PEAKS: dict[tuple[str, torch.dtype], float] = {}


class Stopwatch:
    """Splits the time of some steps into stages; at all others it does nothing.

    On a GPU the marks are events in the stream, so that watching changes nothing.

    Args:
        device: where the steps run.
        first: steps before them: those that compile and record.
        steps: how many.
    """

    def __init__(self, device: str, first: int = 5, steps: int = 10) -> None:
        self._on_gpu = device.startswith("cuda")
        self._timed = range(first, first + steps)
        self._step = -1
        self._marks: list[tuple[str, float | torch.cuda.Event]] = []

    def mark(self, stage: str) -> None:
        """A stage begins; "data" begins a step. The shares leave out what `STAGES` does not name."""
        if stage == "data":
            self._step += 1
        if self._step in self._timed or (self._step == self._timed.stop and stage == "data"):
            self._marks.append((stage, self._now()))

    def shares(self) -> dict[str, float] | None:
        """Each stage's share of their time, once they are over; waits for the device."""
        if self._step < self._timed.stop or not self._marks:
            return None
        seconds = {stage: spent for stage, spent in self.seconds().items() if stage in STAGES}
        return {stage: spent / sum(seconds.values()) for stage, spent in seconds.items()}

    def seconds(self) -> dict[str, float]:
        """What each stage has taken up to the last mark, whatever its name; forgets it, and waits for the device."""
        seconds = dict.fromkeys((stage for stage, _ in self._marks[:-1]), 0.0)
        for (stage, begin), (_, end) in itertools.pairwise(self._marks):
            seconds[stage] += _between(begin, end)
        self._marks.clear()
        return seconds

    def _now(self) -> "float | torch.cuda.Event":
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event


def _between(begin: "float | torch.cuda.Event", end: "float | torch.cuda.Event") -> float:
    if isinstance(begin, float) or isinstance(end, float):
        return end - begin  # type: ignore[operator]
    end.synchronize()
    milliseconds: float = begin.elapsed_time(end)
    return milliseconds / 1000


def training_flops(network: nn.Module, patch: int) -> int:
    """Floating-point operations of one LR patch's forward and backward pass: three times those of the forward pass."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        copy.deepcopy(network).eval().to("meta")(torch.empty(1, 3, patch, patch, device="meta"))
    return 3 * int(counter.get_total_flops())


def saved_bytes(weights: Iterable[Tensor], forward: Work) -> int:
    """What a forward pass keeps for the backward pass, counted once per tensor's memory, without the weights.

    Args:
        weights: the network's.
        forward: computes its loss, on real tensors or fake ones.
    """
    left_out = {_memory(weight) for weight in weights}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if _memory(tensor) not in left_out:
            kept[_memory(tensor)] = tensor.untyped_storage().nbytes()
        return tensor.detach()  # the tensor itself would keep its own graph alive

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = forward()  # its graph holds what was noted: no memory is counted under the name of an earlier one
    del loss
    return sum(kept.values())


def _memory(tensor: Tensor) -> int:
    """What tensors of the same memory have in common, also where they have a shape alone."""
    return int(tensor.untyped_storage()._cdata)  # noqa: SLF001 - no public name; data_ptr is 0 for all fake tensors


def matmul(size: int, device: str, dtype: torch.dtype) -> tuple[Work, float]:
    """A matrix product of a size, and its floating-point operations."""
    first, second = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: torch.mm(first, second), 2.0 * size**3


def convolution(samples: int, device: str, dtype: torch.dtype) -> tuple[Work, float]:
    """Forward and backward of a 3x3 convolution of EDSR-baseline's body, and its floating-point operations."""
    layer = nn.Conv2d(64, 64, 3, padding=1, device=device, dtype=dtype)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    image = torch.randn(samples, 64, 48, 48, device=device, dtype=dtype)
    image = image.contiguous(memory_format=torch.channels_last).requires_grad_()
    upstream = torch.randn_like(image.detach())
    wanted = [image, *layer.parameters()]
    return lambda: torch.autograd.grad(layer(image), wanted, upstream), 6.0 * 9 * 64 * 64 * samples * 48 * 48


def measured_peak(device: str, dtype: torch.dtype, *, again: bool = False) -> float:
    """The best FLOP/s of a matrix product and of a convolution; their memory is given back.

    They are measured once in a process, or `again`: beside other programs they may be too slow, never too fast.
    On a GPU both fill an H100 for about a millisecond; on a small or shared one they take a quarter of the free memory.
    """
    before = _PEAKS.get((device, dtype), 0.0)
    if before and not again:
        return before
    on_gpu = device.startswith("cuda")
    side, samples = 512, 4
    if on_gpu:
        room = torch.cuda.mem_get_info(device)[0] // 4 // dtype.itemsize  # elements
        side = min(8192, max(math.isqrt(room // 3), 256) // 256 * 256)
        samples = min(512, max(room // (5 * 64 * 48 * 48), 1))  # image, output, their gradients, and one to work with
    works = matmul(side, device, dtype), convolution(samples, device, dtype)
    best = max(flops / best_seconds(work, device) for work, flops in works)
    if on_gpu:
        torch.cuda.empty_cache()
    _PEAKS[device, dtype] = max(before, best)
    return _PEAKS[device, dtype]


def time_of(work: Work, times: int, device: str) -> float:
    """Seconds per call, averaged over some calls that follow each other; nothing else is in the device's queue."""
    wait: Callable[[], None] = partial(torch.cuda.synchronize, device) if device.startswith("cuda") else lambda: None
    wait()
    began = time.perf_counter()
    for _ in range(times):
        work()
    wait()
    return (time.perf_counter() - began) / times


def best_seconds(work: Work, device: str) -> float:
    """Of one call, in the best of some repetitions, behind two calls for which a GPU's libraries choose their code."""
    for _ in range(2):
        work()
    return min(_seconds(work, device) for _ in range(5))


def _seconds(work: Work, device: str) -> float:
    """Of one call; on a GPU of one among several, which wait in its queue so that the host's time does not count."""
    if not device.startswith("cuda"):
        return time_of(work, 1, device)
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    begin.record()
    for _ in range(8):
        work()
    end.record()
    return max(_between(begin, end), CLOCK_TICK) / 8


def forget_peak_memory(device: str) -> None:
    """On a GPU: `peak_memory` counts from now on."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: str) -> float:
    """The most memory in use since `forget_peak_memory`, in GB: a GPU's for tensors, or this process's so far."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / GIGA
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIGA
