"""A device's memory: what a training leaves of it, and what to do when it is too small."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from eco_fast.config import Train
from eco_fast.training.cost import estimate
from eco_fast.training.state import TrainingState
from eco_fast.utils import distributed

RESERVE = 1 << 30  # bytes that libraries, their workspaces and the compiler's buffers take beside what is counted


def room_beside(state: TrainingState) -> int:
    """Bytes of a GPU's memory that the steps of a training, whose state is there, leave free; 0 on a CPU."""
    if not state.device.startswith("cuda"):
        return 0
    free, _ = torch.cuda.mem_get_info(state.device)
    cost = estimate(state.config, state.device, state.precision)
    return free - cost.activations - cost.weights - RESERVE  # the gradients exist twice for a moment


@contextmanager
def explain_oom(train: Train) -> Iterator[None]:
    """Let a device that is too small say what would make it large enough.

    Raises:
        ValueError: memory has run out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        known = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not known and "can't allocate memory" not in str(error):
            raise
        at_once = train.micro_batch or -(-train.batch_size // distributed.world_size())
        precision = "" if train.precision in ("bf16", "fp16") else ", or train.precision=bf16"
        raise ValueError(
            f"out of memory ({str(error).splitlines()[0]}): set train.micro_batch below {at_once}, which gives the "
            f"same gradients{precision}; or lower train.batch_size or data.patch, which do not"
        ) from error
