"""A device's memory: what a training leaves of it, and what to do when it is too small."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from eco_fast.config import Train
from eco_fast.training.cost import estimate
from eco_fast.training.state import TrainingState
from eco_fast.training.step import patches_at_once
from eco_fast.utils import distributed

RESERVE = 1 << 30  # bytes that libraries, their workspaces and the compiler's buffers take beside what is counted

OUT_OF_MEMORY = ("can't allocate memory", "could not create a", "_ALLOC_FAILED")  # torch's on a CPU, oneDNN's, CUDA's


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
        if not is_out_of_memory(error):
            raise
        at_once = patches_at_once(train, -(-train.batch_size // distributed.world_size()))
        smaller = f"set train.micro_batch below {at_once}, which gives the same gradients"
        if train.micro_batch == "auto":  # which has found nothing smaller that helps, or had no part in it
            smaller = "give the run more memory"
        precision = "" if train.precision in ("bf16", "fp16") else ", or train.precision=bf16"
        said = str(error).partition("\n")[0] or "of Python's objects"  # whose MemoryError has no words
        raise ValueError(
            f"out of memory ({said}): {smaller}{precision}; a lower "
            "train.batch_size or data.patch takes less too, but changes the result"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation has failed: torch's, numpy's, or one of a library below them, which has no type for it."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in OUT_OF_MEMORY)
    )
