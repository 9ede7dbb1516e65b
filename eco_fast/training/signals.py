"""Signals that ask a run to end: all ranks stop after the same step, with a checkpoint.

SIGTERM is what a cluster sends that takes its node back, SIGUSR1 and SIGUSR2 what Slurm sends before its time limit
(--signal), SIGHUP a terminal that is lost, SIGINT Ctrl-C. One that the run was started to ignore, as nohup does with
SIGHUP, stays ignored.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn, Self

import torch
import torch.distributed as dist

from eco_fast.utils import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class StoppedBySignal(KeyboardInterrupt):
    """The run has ended cleanly because of a signal; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@contextmanager
def stops_cleanly() -> Iterator[None]:
    """Let a signal end what is between the trainings as Ctrl-C does, with a sentence.

    Raises:
        StoppedBySignal: there was one.
    """

    def stop(number: int, _: FrameType | None) -> NoReturn:
        raise StoppedBySignal(number)

    with _handled(stop):
        yield


class StopSignal:
    """While entered, the first signal requests a stop; a second Ctrl-C stops at once.

    Ranks agree by a reduction that runs beside one step and is read after the next one: nobody waits for it.
    """

    def __init__(self) -> None:
        self._number = 0
        self._agreed = 0
        self._in_flight: tuple[torch.Tensor, Any] | None = None

    @classmethod
    @contextmanager
    def heard(cls) -> Iterator[Self]:
        """One that hears the signals while the block runs."""
        stop = cls()
        with _handled(stop._note):
            yield stop

    def requested(self) -> int:
        """Number of the signal for which all ranks are to stop now, or 0. Every rank calls it once a step."""
        if distributed.world_size() == 1:
            return self._number
        if self._in_flight is not None:
            number, reduction = self._in_flight
            distributed.wait_for(reduction)
            self._agreed = int(number.item())
        number = torch.tensor(self._number)
        self._in_flight = (number, dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True))
        return self._agreed

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._number = number


@contextmanager
def _handled(handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Handle all signals that are not ignored; only the main thread may."""
    handlers: dict[signal.Signals, Any] = {}
    try:
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    handlers[number] = signal.signal(number, handler)
        yield
    finally:
        for number, before in handlers.items():
            signal.signal(number, before)
