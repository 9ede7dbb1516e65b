"""The processes of one training: torchrun starts them, they share every batch, and each knows why another stopped.

    torchrun --nproc-per-node 8 -m -- eco_fast train edsr_x2_eco --run runs/mine

Without torchrun there is one rank, and every call is a no-op. Tensors on GPUs travel by NCCL, those on
CPUs and Python objects by gloo. Every rank reports its stage through the store of the group, so that the ranks that
are left can say which one broke, hangs or is gone.
"""

import os
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist
import torch.distributed.nn  # noqa: F401 - before there is a group: its default arguments would keep one for ever
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")
BEAT = 0.5  # seconds between two signs of life
PATIENCE = 3.0  # seconds without one after which a rank counts as gone, and that a failing one has to say why


@dataclass
class _Group:
    """This process among the others."""

    rank: int = 0
    world: int = 1
    stage: str = "starting"
    store: Any = None
    """Where the ranks leave signs of life, and why they stop."""


_group = _Group()


def rank() -> int:
    """Number of this process, from 0."""
    return _group.rank


def world_size() -> int:
    """Number of processes."""
    return _group.world


def is_main_process() -> bool:
    """Whether this process is the one that writes files and speaks."""
    return _group.rank == 0


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
    _group.rank, _group.world, _group.store = number, count, PrefixStore("signs", store)
    ended = threading.Event()
    beating = threading.Thread(target=_beat, args=(ended,), name="signs of life", daemon=True)
    beating.start()
    speaks = sys.stdout
    try:
        if number > 0:
            sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - one voice is enough
        with _named_failures():
            yield
            all_gather(None)  # nobody leaves while another may need it
    finally:
        sys.stdout = speaks
        ended.set()
        beating.join()
        _group.rank, _group.world, _group.store = 0, 1, None
        dist.destroy_process_group()


def report_stage(stage: str) -> None:
    """Say what this rank is about to do, for those who may have to wait for it."""
    _group.stage = stage


def on_rank0(work: Callable[[], T]) -> T:
    """Let the first rank do what only one may do; every rank gets its result, which must be picklable."""
    outcome = [work() if is_main_process() else None]
    if _group.world > 1:
        dist.broadcast_object_list(outcome, src=0)
    return outcome[0]  # type: ignore[return-value]


def all_gather(value: T) -> list[T]:
    """Every rank's value, in their order."""
    if _group.world == 1:
        return [value]
    values: list[Any] = [None] * _group.world
    dist.all_gather_object(values, value)
    return values


def shard(values: Iterable[T]) -> list[T]:
    """This rank's part of the values: every world-th from its rank on."""
    return list(values)[_group.rank :: _group.world]


def _beat(ended: threading.Event) -> None:
    """Give a sign of life, with the stage, until the end."""
    store, count = _group.store.clone(), 0  # a connection of its own: the main thread may be waiting on the other
    while True:
        count += 1
        try:
            store.set(f"sign/{_group.rank}", f"{count} {_group.stage}")
        except RuntimeError:  # the store's host is gone: the group's next exchange fails, and says so
            return
        if ended.wait(BEAT):
            return


@contextmanager
def _named_failures() -> Iterator[None]:
    """Tell the others why this rank stops; or learn from them why it must."""
    try:
        yield
    except Exception as error:
        if not _is_of_an_exchange(error):
            _publish(str(error) if isinstance(error, ValueError | OSError) else f"{type(error).__name__}: {error}")
            if isinstance(error, ValueError):
                raise ValueError(f"rank {_group.rank}: {error}") from error
            raise
        raise ValueError(f"rank {_group.rank} stopped, because {_cause(error)}") from error


def _is_of_an_exchange(error: Exception) -> bool:
    """Whether an error is that of two ranks' exchange; gloo's have no type of their own."""
    words = ("gloo", "onnection", "imed out", "Broken pipe")
    return isinstance(error, dist.DistError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in words)
    )


def _publish(reason: str) -> None:
    try:
        _group.store.set(f"failure/{_group.rank}", f"{reason} (on {socket.gethostname()})")
    except RuntimeError:
        return  # nobody can be told any more


def _cause(error: Exception) -> str:
    """Which other rank is to blame for a failed exchange, and why."""
    others = [number for number in range(_group.world) if number != _group.rank]
    try:
        before = {number: _sign(number) for number in others}
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            for number in others:
                if _group.store.check([f"failure/{number}"]):
                    return f"rank {number} did: {_group.store.get(f'failure/{number}').decode()}"
            time.sleep(0.1)
        after = {number: _sign(number) for number in others}
    except RuntimeError:
        return "rank 0, which keeps the ranks' addresses, is gone"
    for number in others:
        if after[number] == before[number]:
            return f"rank {number} is gone or stopped; it was {after[number][1]}"
    behind = [number for number in others if after[number][1] != _group.stage]
    if behind:
        return f"rank {behind[0]} kept the others waiting; it was {after[behind[0]][1]}"
    return f"its exchange with the others failed: {str(error).splitlines()[0]}"


def _sign(number: int) -> tuple[str, str]:
    """Count and stage of a rank's last sign of life."""
    if not _group.store.check([f"sign/{number}"]):
        return "0", "starting"
    count, _, stage = _group.store.get(f"sign/{number}").decode().partition(" ")
    return count, stage
