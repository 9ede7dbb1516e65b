"""SIGTERM (a cluster takes its node back) and Ctrl-C: all ranks stop after the same step, with a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from eco_fast.utils import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StoppedBySignal(KeyboardInterrupt):
    """The run has ended cleanly because of a signal; `number` is the signal's."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class StopSignal:
    """While entered, the first signal requests a stop; a second Ctrl-C stops at once.

    Ranks agree by a reduction that runs beside one step and is read after the next one: nobody waits for it.
    """

    def __init__(self) -> None:
        self._number = 0
        self._agreed = 0
        self._in_flight: tuple[torch.Tensor, Any] | None = None
        self._handlers: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._handlers = {number: signal.signal(number, self._note) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def requested(self) -> int:
        """Number of the signal for which all ranks are to stop now, or 0. Every rank calls it once a step."""
        if distributed.world_size() == 1:
            return self._number
        if self._in_flight is not None:
            number, reduction = self._in_flight
            reduction.wait()
            self._agreed = int(number.item())
        number = torch.tensor(self._number)
        self._in_flight = (number, dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True))
        return self._agreed

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._number = number
