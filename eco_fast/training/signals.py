"""SIGTERM (a cluster takes its node back) and Ctrl-C: all ranks stop after the same step, with a checkpoint."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from eco_fast.utils import distributed

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(KeyboardInterrupt):
    """The run has stopped in order, for a signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Interruption:
    """While entered, the first signal is a wish to stop, which `wanted` tells; a second Ctrl-C stops at once.

    Between ranks the wish travels beside a step and is read after the next one: nobody waits for it.
    """

    def __init__(self) -> None:
        self._number = 0
        self._agreed = 0
        self._on_its_way: tuple[torch.Tensor, Any] | None = None
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

    def wanted(self) -> int:
        """The number of the signal for which all ranks are to stop now, or 0; to be asked once a step, by all."""
        if distributed.world() == 1:
            return self._number
        if self._on_its_way is not None:
            number, travel = self._on_its_way
            travel.wait()
            self._agreed = int(number.item())
        number = torch.tensor(self._number)
        self._on_its_way = (number, dist.all_reduce(number, dist.ReduceOp.MAX, async_op=True))
        return self._agreed

    def _note(self, number: int, _: FrameType | None) -> None:
        if self._number == signal.SIGINT == number:
            raise KeyboardInterrupt
        self._number = number
