"""What to do when a device's memory is too small for the training."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from eco_fast.config import Train
from eco_fast.utils import distributed


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
