"""The whole training step as one CUDA graph: the host launches it, and does nothing else.

The steps of SR networks are thousands of short kernels, and the host takes longer to launch them than a GPU to run
them (docs/gpu.md). A graph is recorded once and launched as one. It repeats the same kernels on the same addresses:
whatever differs from step to step (crops, alpha, learning rate, noise, the skip rule, the scale of gradients) is read
from tensors that are written before the launch, and a number that Python works out would be frozen for ever.
"""

from collections.abc import Callable
from typing import Protocol

import torch

from eco_fast.config import Optimizer, Train
from eco_fast.data.batch import Unpackable

WARM_UP = 3
"""Steps before the recording: cuDNN's search, compilation and the first use of libraries cannot be recorded."""


class Recorder(Protocol):
    """Turns work on the device into its replay."""

    def __call__(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record without doing, and return what does it."""


class StepGraph:
    """A step that is made `WARM_UP` times, then recorded, and replayed from then on.

    It does not keep the step: whoever owns both would be part of a circle, and a graph's memory would outlive the
    training until Python looks for circles.

    Args:
        recorder: of the device.
    """

    def __init__(self, recorder: Recorder) -> None:
        self._record = recorder
        self._made = 0
        self._samples: Unpackable | None = None
        self._replay: Callable[[], None] | None = None

    def __call__(self, step: Callable[[Unpackable], None], samples: Unpackable) -> None:
        """Make a step, always the same one, of samples that stay where they are and have new contents at each call."""
        assert self._samples is None or self._samples is samples, "a recorded step reads what was recorded"
        self._samples = samples
        if self._made < WARM_UP:
            self._made += 1
            step(samples)
            return
        if self._replay is None:
            self._replay = self._record(lambda: step(samples))
        self._replay()


def record_cuda_graph(work: Callable[[], None]) -> Callable[[], None]:
    """Capture what `work` launches; other threads may go on calling CUDA meanwhile, as DALI's and NCCL's do."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        work()
    return graph.replay


def choose_recorder(train: Train, optimizer: Optimizer, device: str) -> tuple[Recorder | None, str | None]:
    """What records the steps of a recipe on a device, and, where a GPU goes without, why.

    Raises:
        ValueError: the recipe asks for a graph that cannot be had; says what to change.
    """
    if train.graph is False:
        return None, "as train.graph says"
    if not device.startswith("cuda"):
        if train.graph is True:
            raise ValueError(f"train.graph=true needs a GPU, the device is {device}; take train.graph=auto")
        return None, None
    if optimizer.name == "lamb" and optimizer.backend == "apex":
        if train.graph is True:
            raise ValueError("train.graph=true: optimizer.backend=apex asks the host at every step; take triton")
        return None, "optimizer.backend=apex asks the host at every step"
    return record_cuda_graph, None
