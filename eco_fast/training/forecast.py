"""How long a training takes, what that costs, and its memory: said after its first steps, and compared at its end.

A step's time is the mean of some early ones, waiting for data included. A validation is foretold from one image, a
checkpoint from making what would be written. Energy is known where the device tells it; a cost where
`train.price_per_hour` is given.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from eco_fast.config import Config, Train
from eco_fast.config.intervals import share_of_time
from eco_fast.training.checkpoints import Checkpoints
from eco_fast.training.profiling import peak_memory
from eco_fast.training.telemetry import Telemetry
from eco_fast.training.validation import Validation
from eco_fast.utils import distributed
from eco_fast.utils.progress import duration_in_words

FIRST, TIMED = 5, 20  # steps before those that are timed, which compile and record; and these
LEAST = 4 * (FIRST + TIMED)  # steps of a training of which something is foretold
JOULES_PER_KWH = 3.6e6
PACKAGES = Path("/sys/class/powercap")  # the processors' meters, which most systems let root alone read


@dataclass(frozen=True)
class Measured:
    """What was measured of a training."""

    start: float
    """Seconds until the first steps were made: network, compiler, search of the micro-batch."""
    step: float
    """Seconds, waiting for data included."""
    validation: float
    """Seconds; 0 where nothing is validated."""
    checkpoint: float
    """Seconds that the making of one takes from the training, at most."""
    watts: float | None
    """Of all devices; None where they do not tell."""
    memory: float
    """GB, as `peak_memory` counts them."""

    def seconds(self, train: Train, done: int = 0) -> float:
        """What the steps from `done` on take, with what happens between them."""
        steps, share = train.steps, share_of_time(train.validate_every)
        validations, checkpoints = {steps}, {steps, *_multiples(train.checkpoint_every, done, steps)}
        if share is None:
            validations |= {*_multiples(int(train.validate_every), done, steps)}
        if self.validation:
            checkpoints |= validations  # each may be the best so far
        spent = (steps - done) * self.step + len(validations) * self.validation + len(checkpoints) * self.checkpoint
        return spent * (1 + share) if share and self.validation else spent

    def told(self, seconds: float, price_per_hour: float) -> str:
        """What so many seconds mean: time, energy, cost, memory."""
        words = [duration_in_words(seconds)]
        if self.watts is not None:
            words.append(f"{self.watts * seconds / JOULES_PER_KWH:.3g} kWh")
        if price_per_hour:
            words.append(f"{price_per_hour * seconds / 3600:.2f} at {price_per_hour:g} an hour")
        return ", ".join([*words, f"{self.memory:.2f} GB of memory"])


def _multiples(interval: int, done: int, steps: int) -> range:
    """The steps behind `done` that are multiples of an interval."""
    return range((done // interval + 1) * interval, steps + 1, interval)


class Forecast:
    """The forecast of one training.

    Args:
        following: recipes of the trainings of the same network that the run makes behind it.
        least: steps of a training of which something is foretold.
        clock: seconds, which go on.

    Attributes:
        measured: what it goes by, once that is known.
    """

    def __init__(
        self, following: Sequence[Config] = (), least: int = LEAST, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self._following, self._least, self._clock = following, least, clock
        self.measured: Measured | None = None
        self._began, self._marked = clock(), clock()
        self._spent, self._first, self._joules = 0.0, 0.0, 0.0
        self._predicted = 0.0

    def add(self, done: int, validation: Validation, checkpoints: Checkpoints, telemetry: Telemetry) -> None:
        """Count a step, of which `done` are made; once there are enough, say what the training takes."""
        state = validation.state
        steps = done - state.start
        if steps > FIRST + TIMED or state.config.train.steps - state.start < self._least:
            return
        if steps in (FIRST, FIRST + TIMED):
            state.updater.counters.accepted.item()  # wait for the device
        now = self._clock()
        if steps == FIRST:
            self._first, self._joules = now - self._began, joules(state.device) or 0.0
        elif steps > FIRST:
            self._spent += now - self._marked
        if steps == FIRST + TIMED:
            telemetry.say(self._told(done, validation, checkpoints))
            telemetry.restart_clock(done)

    def mark(self) -> None:
        """A step begins: what has happened since the last one was counted is no part of either."""
        self._marked = self._clock()

    def _told(self, done: int, validation: Validation, checkpoints: Checkpoints) -> str:
        """Measure what remains to be measured; all ranks take part."""
        state = validation.state
        train, used = state.config.train, joules(state.device)
        watts = None if used is None else (used - self._joules) / self._spent
        validated = validation.foretell()
        saved = checkpoints.rehearse(state.result, state.state_dict())
        of_ranks = distributed.all_gather((self._spent / TIMED, validated, saved, watts, peak_memory(state.device)))
        steps, validations, savings, powers, memories = zip(*of_ranks, strict=True)
        known = [one for one in powers if one is not None]
        power = None if len(known) < len(powers) else sum(known) if state.device != "cpu" else max(known)
        self.measured = Measured(
            self._first - FIRST * steps[0], steps[0], max(validations), savings[0], power, max(memories)
        )
        self._predicted = self._clock() - self._began + self.measured.seconds(train, done)
        words = self.measured.told(self._predicted, train.price_per_hour)
        whole = self._predicted + sum(self.measured.start + self.measured.seconds(one.train) for one in self._following)
        more = f"; with the trainings behind it {duration_in_words(whole)}" if self._following else ""
        return (
            f"will take {words}: {1000 * self.measured.step:.3g} ms a step, {self.measured.validation:.2g} s a "
            f"validation, {self.measured.checkpoint:.2g} s a checkpoint{more}"
        )

    def compare(self, device: str, label: str) -> None:
        """Say what the training has taken beside what was foretold; nothing where nothing was."""
        if self.measured is None:
            return
        taken, memory = self._clock() - self._began, peak_memory(device)
        print(
            f"{label} took {duration_in_words(taken)}, {taken / self._predicted - 1:+.1%} of what was foretold, and "
            f"{memory:.2f} GB, {memory / self.measured.memory - 1:+.1%}",
            flush=True,
        )


def joules(device: str) -> float | None:
    """What a device has used since some moment, or None where it does not tell.

    A GPU's is NVML's, if nvidia-ml-py is installed; a CPU's the kernel's, of all processors of the machine.
    """
    if device != "cpu":
        return _joules_of_gpu(torch.device(device).index or 0)
    with suppress(OSError, ValueError):
        meters = [path for path in PACKAGES.glob("intel-rapl:*/energy_uj") if path.parent.name.count(":") == 1]
        if meters:
            return sum(int(path.read_text(encoding="ascii")) for path in meters) / 1e6
    return None


def _joules_of_gpu(index: int) -> float | None:
    try:
        import pynvml  # noqa: PLC0415 - optional
    except ImportError:
        return None
    with suppress(pynvml.NVMLError):
        pynvml.nvmlInit()
        handle = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(index).uuid}")
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(handle)) / 1000
    return None
