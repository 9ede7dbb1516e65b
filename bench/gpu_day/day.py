"""What the sections of a GPU day share: the clock, the results, and the sizes of a rehearsal."""

import json
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from eco_fast import config
from eco_fast.config import Config
from eco_fast.utils.device import pick_device
from eco_fast.utils.files import write_json

DEVICE = "cuda:0"
LEAST_SHARE = 0.5
"""Of its budget that a section needs to begin: what it cannot finish it leaves out, most important things first."""
OVERTIME = 1.5
"""Times its budget, after which a section is given up."""
TINY = {
    "edsr": ("model.features=16", "model.blocks=1"),
    "rcan": ("model.features=16", "model.groups=1", "model.blocks=1"),
    "swinir": ("model.features=12", "model.depths=[2]", "model.heads=[2]"),
}
"""Settings of the networks of a rehearsal."""


class Day:
    """One call of `bench.gpu_day`.

    Args:
        out: where the results go; those of an earlier process of the same call are kept.
        deadline: `time.monotonic()` at which all is to be over.
        rehearse: whether values mean nothing.

    Raises:
        ValueError: there is no GPU, or no C compiler beside it.
    """

    def __init__(self, out: Path, deadline: float, *, rehearse: bool) -> None:
        self.out, self.rehearse = out, rehearse
        self._deadline, self._section_ends = deadline, deadline
        self._file = out / "gpu_day.json"
        out.mkdir(parents=True, exist_ok=True)
        pick_device(DEVICE)
        torch.cuda.init()
        self.results: dict[str, Any] = {
            "rehearsal": rehearse,
            "facts": {},
            "ceilings": {},
            "tests": {},
            **{
                kind: []
                for kind in ("checks", "steps", "ops", "compiled_ops", "images", "options", "counters", "skipped")
            },
            "seconds": {},
            "errors": {},
        }
        if self._file.is_file():
            self.results |= json.loads(self._file.read_text(encoding="utf-8"))

    def run(self, section: "Section") -> None:
        """Run a section within its budget; what it raises becomes a result."""
        left = self.left_in_all()
        if left < LEAST_SHARE * section.budget and not self.rehearse:
            self.skip(section.name)
            return
        print(f"--- {section.name}: {section.budget} s, {left:.0f} s left in all", flush=True)
        began = time.monotonic()
        self._section_ends = min(began + section.budget, self._deadline)
        try:
            with time_limit(min(OVERTIME * section.budget, left) if not self.rehearse else left):
                section.run(self)
        except Exception as error:  # noqa: BLE001 - the next section is to have its turn
            self.results["errors"][section.name] = "".join(traceback.format_exception(error))[-4000:]
            traceback.print_exception(error)
        self.results["seconds"][section.name] = round(time.monotonic() - began, 1)
        self.save()

    def left(self) -> float:
        """Seconds of the section's budget."""
        return self._section_ends - time.monotonic()

    def left_in_all(self) -> float:
        """Seconds before the deadline."""
        return self._deadline - time.monotonic()

    def has_time(self, name: str, seconds: float) -> bool:
        """Whether so many seconds are left of the section's budget; otherwise `name` is noted as skipped."""
        enough = self.rehearse or self.left() > seconds
        if not enough:
            self.skip(name)
        return enough

    def skip(self, name: str) -> None:
        """Note what there was no time for."""
        print(f"skipped: {name}", flush=True)
        self.results["skipped"].append(name)
        self.save()

    def add(self, kind: str, **row: Any) -> None:
        """Add a row to one of the lists of results."""
        print(f"{kind}: {row}", flush=True)
        self.results[kind].append(row)
        self.save()

    def ceiling(self, name: str, value: float) -> None:
        """Note a rate of the machine; its name ends with the unit."""
        print(f"{name}: {value:.4g}", flush=True)
        self.results["ceilings"][name] = value
        self.save()

    def check(self, name: str, value: float, low: float, high: float) -> None:
        """Note whether a value is between two limits, which a rehearsal does not judge."""
        ok = None if self.rehearse else low <= value <= high
        self.add("checks", name=name, ok=ok, value=value, limit=[low, high])

    def recipe(self, name: str, *overrides: str) -> Config:
        """A shipped recipe on the GPU, from fresh weights; of a tiny network in a rehearsal."""
        made = config.load(name, [f"train.device={DEVICE}", "model.start_from=", *overrides])
        if not self.rehearse:
            return made
        return config.load(name, [f"train.device={DEVICE}", "model.start_from=", *overrides, *TINY[made.model.name]])

    def save(self) -> None:
        """Write the results, whole or not at all."""
        write_json(self._file, self.results)

    def context_is_lost(self) -> bool:
        """Whether an error has ended this process's access to the GPU."""
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            self.results["errors"]["context"] = str(error)[:2000]
            self.save()
            return True
        return False


@dataclass(frozen=True)
class Section:
    """One question to the GPU."""

    name: str
    budget: int
    """Seconds."""
    run: Callable[[Day], None]


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """End what takes longer; what waits inside the driver ends when it comes back.

    Raises:
        TimeoutError: the time is over.
    """

    def stop(_: int, __: FrameType | None) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
