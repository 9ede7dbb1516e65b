"""The processes of one training: torchrun starts them, they share every batch, and each knows why another stopped.

    torchrun --nproc-per-node 8 -m -- eco_fast train edsr_x2_eco --run runs/mine

Without torchrun there is one rank, and every call is a no-op. Tensors on GPUs travel by NCCL, those on CPUs and Python
objects by gloo. torchrun ends the run when a rank fails, and prints that rank's number, signal or traceback. It knows
the ranks of its own machine alone: those of others learn the cause from the store that all ranks share.

That is tested with gloo. With NCCL, of which nothing has been measured, torch's documentation and source say: where a
rank dies, the others wait in the CUDA driver, where Python's signal handlers do not run, so none of them names it.
torchrun ends those of the same machine, by SIGTERM and 30 seconds later by SIGKILL, and names the rank that failed. On
other machines torch's watchdog ends the process once an exchange has taken `timeout` (TORCH_NCCL_ASYNC_ERROR_HANDLING=3
is its default; there is nothing to set), but it does not see exchanges that are part of a CUDA graph.
"""

import os
import socket
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.nn  # noqa: F401 - before there is a group: its default arguments would keep one for ever
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.elastic.multiprocessing.errors import get_error_handler
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")
PATIENCE = 3.0  # seconds in which a rank whose exchange failed expects to hear why
CAUSE = "cause"  # key of the store: the first error that is surely its rank's own


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return rank() == 0


def restarted() -> bool:
    """Whether torchrun has started the processes anew after a failure."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def process_group(timeout: float) -> Iterator[None]:
    """Be one of torchrun's processes; without torchrun, a process of its own.

    Args:
        timeout: seconds after which a rank that others wait for is given up.

    Raises:
        ValueError: whatever stopped this rank, or the rank that stopped this one; names it.
        RuntimeError: an exchange with other ranks failed and none said why; a note names those that are silent.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    limit = timedelta(seconds=timeout)
    shared, number, count = next(rendezvous("env://", timeout=limit))
    # torchrun may keep its store over restarts: the addresses of processes that are gone must not be found there
    store = PrefixStore(f"eco-fast/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", shared)
    backend = "cpu:gloo,cuda:nccl" if dist.is_nccl_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=limit)
    with ExitStack() as stack:
        stack.callback(dist.destroy_process_group)
        if number > 0:  # one voice is enough
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))  # noqa: PTH123
        try:
            with _named_failures(store):
                yield
                all_gather(None)  # nobody leaves while another may need it
        except Exception as error:
            get_error_handler().record_exception(error)  # for torchrun's report
            raise


def on_rank0(work: Callable[[], T]) -> T:
    """Let rank 0 do what only one may do; every rank gets its result, which must be picklable."""
    outcome = [work() if is_main_process() else None]
    if dist.is_initialized():
        dist.broadcast_object_list(outcome, src=0)
    return outcome[0]  # type: ignore[return-value]


def all_gather(value: T) -> list[T]:
    """Every rank's value, in their order."""
    if not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for(exchange: dist.Work) -> None:
    """Wait until an exchange that runs beside the training has ended."""
    exchange.wait()


def shard(values: Iterable[T]) -> list[T]:
    """This rank's part of the values: every world_size-th from its rank on."""
    return list(values)[rank() :: world_size()]


@contextmanager
def _named_failures(store: PrefixStore) -> Iterator[None]:
    """Tell the others why this rank stops; or learn from them why it must."""
    try:
        yield
    except ValueError as error:
        _publish(store, str(error))
        raise ValueError(f"rank {rank()}: {error}") from error
    except Exception as error:
        if not _of_exchange(error):
            _publish(store, f"{type(error).__name__}: {error}")
        elif cause := _cause(store, error):
            raise ValueError(f"rank {rank()} stopped, because {cause}") from error
        raise


def _of_exchange(error: Exception) -> bool:
    """Whether it was raised while this rank waited for others: gloo's errors have no type, and no word in common."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_filename.startswith((str(Path(dist.__file__).parent), __file__))


def _publish(store: PrefixStore, reason: str) -> None:
    with suppress(dist.DistError):  # nobody can be told any more
        store.set(CAUSE, f"rank {rank()} did: {reason} (on {socket.gethostname()})")


def _cause(store: PrefixStore, error: Exception) -> str:
    """What another rank has said of its failure; where none has, the error gets a note that names the silent ranks."""
    try:
        store.set(f"stopped/{rank()}", "")
        deadline = time.monotonic() + PATIENCE
        while not store.check([CAUSE]):
            if time.monotonic() > deadline:
                silent = [str(one) for one in range(world_size()) if not store.check([f"stopped/{one}"])]
                what = f"without word from rank {', '.join(silent)}: killed or stalled?"
                alone = "as all ranks did, each without an answer from another: is the network between them cut?"
                error.add_note(f"rank {rank()} stopped {what if silent else alone}")
                return ""
            time.sleep(0.1)
        return str(store.get(CAUSE).decode())
    except dist.DistError:
        error.add_note(f"rank {rank()} stopped; the store that the ranks share is gone")
        return ""
