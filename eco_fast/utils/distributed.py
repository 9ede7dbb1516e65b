"""The processes of one training: torchrun starts them, they share every batch, and each knows why another stopped.

    torchrun --nproc-per-node 8 -m -- eco_fast train edsr_x2_eco --run runs/mine

Without torchrun there is one rank, and every call is a no-op. Tensors on GPUs travel by NCCL, those on CPUs and Python
objects by gloo. torchrun ends the run when a rank fails, and prints that rank's number, signal or traceback. It knows
the ranks of its own machine alone: those of others learn the cause from the store that all ranks share. The run folder
they share too, which `check_shared` makes sure of.

That is tested with gloo. With NCCL, of which nothing has been measured, torch's documentation and source say: where a
rank dies, the others wait in the CUDA driver, where Python's signal handlers do not run, so none of them names it.
torchrun ends those of the same machine, by SIGTERM and 30 seconds later by SIGKILL, and names the rank that failed. On
other machines torch's watchdog ends the process once an exchange has taken `timeout` (TORCH_NCCL_ASYNC_ERROR_HANDLING=3
is its default; there is nothing to set), but it does not see exchanges that are part of a CUDA graph.
"""

import ipaddress
import os
import socket
import tempfile
import threading
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
OUT_OF_REACH = 30.0  # seconds after which the store is not waited for any more
CAUSE = "cause"  # key of the store: the first error that is surely its rank's own


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def local_rank() -> int:
    """Number of this process among those of its machine, from 0."""
    return int(os.environ.get("LOCAL_RANK", rank()))


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
        ValueError: whatever stopped this rank, or the rank that stopped this one; names it. Or other machines cannot
            reach this one under its name.
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
    with ExitStack() as stack:
        if number > 0:  # one voice is enough
            stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w", encoding="utf-8"))))  # noqa: PTH123
        try:
            with _named_failures(store, number, count):
                _check_address(store, number, count)
                dist.init_process_group(backend, store=store, rank=number, world_size=count, timeout=limit)
                stack.callback(dist.destroy_process_group)
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
    """Wait for an exchange that runs beside the training; in this file, by which `_of_exchange` knows its errors."""
    exchange.wait()


def shard(values: Iterable[T]) -> list[T]:
    """This rank's part of the values: every world_size-th from its rank on."""
    return list(values)[rank() :: world_size()]


def check_shared(folder: Path) -> None:
    """Make sure that all ranks see one and the same folder.

    Raises:
        ValueError: they do not; names the machines that see another one, or none.
    """
    if world_size() == 1:
        return
    name = on_rank0(lambda: _mark(folder))  # one that nobody has looked for yet: network disks remember what is missing
    seen = all_gather((socket.gethostname(), (folder / name).exists()))
    on_rank0((folder / name).unlink)
    if blind := sorted({host for host, sees in seen if not sees}):
        raise ValueError(
            f"{folder}: what {seen[0][0]} writes there is not seen on {', '.join(blind)}; "
            "several machines need this folder on a disk that they share"
        )


def _mark(folder: Path) -> str:
    file, name = tempfile.mkstemp(dir=folder, prefix=".", suffix=".partial")
    os.close(file)
    return Path(name).name


def _check_address(store: PrefixStore, number: int, count: int) -> None:
    """Refuse a machine that gloo would look for at its own loopback: it takes the address of the machine's name.

    Raises:
        ValueError: the name stands for the loopback alone, or for nothing, and there are several machines.
    """
    host = socket.gethostname()
    if number in (0, count - 1):
        store.set(f"host of {number}", host)
    if "GLOO_SOCKET_IFNAME" in os.environ or store.get("host of 0") == store.get(f"host of {count - 1}"):
        return
    address = "no address"
    with suppress(OSError):
        address = str(socket.getaddrinfo(host, None)[0][4][0])
        if not ipaddress.ip_address(address.partition("%")[0]).is_loopback:
            return
    raise ValueError(
        f"the name {host} stands for {address}, where other machines cannot reach this one; let "
        "GLOO_SOCKET_IFNAME name the network interface between them on each machine (`ip -brief address` lists them)"
    )


@contextmanager
def _named_failures(store: PrefixStore, number: int, count: int) -> Iterator[None]:
    """Tell the others why this rank stops; or learn from them why it must."""
    try:
        yield
    except ValueError as error:
        _publish(store, number, str(error))
        raise ValueError(f"rank {number}: {error}") from error
    except Exception as error:
        if not _of_exchange(error):
            _publish(store, number, f"{type(error).__name__}: {error}")
        elif cause := _cause(store, error, number, count):
            raise ValueError(f"rank {number} stopped, because {cause}") from error
        raise


def _of_exchange(error: Exception) -> bool:
    """Whether it was raised while this rank waited for others: gloo's errors have no type, and no word in common."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    return frame.f_code.co_filename.startswith((str(Path(dist.__file__).parent), __file__))


def _publish(store: PrefixStore, number: int, reason: str) -> None:
    with suppress(dist.DistError):  # nobody can be told any more
        store.set(CAUSE, f"rank {number} did: {reason} (on {socket.gethostname()})")


def _cause(store: PrefixStore, error: Exception, number: int, count: int) -> str:
    """What another rank has said of its failure; where none has, the error gets a note that names the silent ranks.

    A link that is cut leaves whoever asks the store waiting for TCP, which is a quarter of an hour: a thread asks.
    """
    gone = f"rank {number} stopped; the store of all ranks, on {os.environ['MASTER_ADDR']}, is out of reach"
    found = ["", f"{gone}: killed or stalled?"]
    asking = threading.Thread(target=_ask, args=(store, number, count, found), daemon=True)
    asking.start()
    asking.join(OUT_OF_REACH)
    cause, note = found
    if not cause:
        error.add_note(note)
    return cause


def _ask(store: PrefixStore, number: int, count: int, found: list[str]) -> None:
    """Put into `found` what another rank has said of its failure, or else what is known of the silence."""
    with suppress(dist.DistError):
        store.set(f"stopped/{number}", "")
        deadline = time.monotonic() + PATIENCE
        while not store.check([CAUSE]):
            if time.monotonic() > deadline:
                silent = [str(one) for one in range(count) if not store.check([f"stopped/{one}"])]
                what = f"without word from rank {', '.join(silent)}: killed or stalled?"
                alone = "as all ranks did, each without an answer from another: is the network between them cut?"
                found[:] = "", f"rank {number} stopped {what if silent else alone}"
                return
            time.sleep(0.1)
        found[:] = str(store.get(CAUSE).decode()), ""
