"""What a training says while it runs: the mean loss, the speed, what it waits for, and which steps were skipped.

A terminal shows one line that is kept up to date; a file gets one where nothing else was said for a minute.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

import torch

from eco_fast.data.loader import Loader
from eco_fast.data.sources import ImageEntry
from eco_fast.training.profiling import Stopwatch, forget_peak_memory, measured_peak, peak_memory, training_flops
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.state import TrainingState
from eco_fast.training.trackers import Trackers
from eco_fast.utils import distributed
from eco_fast.utils.progress import ProgressLine, duration_in_words

WAIT_WARNING = 0.05  # share of the time above which waiting for data is worth a sentence
TRACED = 3  # steps in a trace
NAMED_SKIPS = 3  # skipped steps that are named at a log interval; the others are counted
ADVICE = {
    "store": "put the store on a faster disk, leave it a free core, or raise data.prefetch",
    "files": "decode the images once, with data.source=store",
}


class Telemetry:
    """Collects on the device, and speaks at every log interval; the only place in the loop that waits for the device.

    Args:
        run: where the rows go.
        loader: whose waiting is measured.
        entries: of the images.
        state: whose losses are summed, from the step on that it starts at.
        label: precedes every line.
        profile: write a trace of a few steps into the run folder.
        clock: seconds, which go on.
    """

    def __init__(
        self,
        run: RunFolder,
        loader: Loader[Any],
        entries: Sequence[ImageEntry],
        state: TrainingState,
        label: str,
        *,
        profile: bool = False,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        device, start = state.device, state.start
        self.run, self.loader, self.entries, self.state, self.label = run, loader, entries, state, label
        self.device, self.stopwatch = device, Stopwatch(device)
        self._counters = state.updater.counters
        self._flops, self._peak = 0.0, 1.0
        self._begin, self._step, self._done = start, start, start
        self._clock, self._since, self._waited = clock, clock(), 0.0
        self._first, self._seconds, self._timed = 0.0, 0.0, 0  # of the first step; of those behind it, and their number
        self._speed, self._waiting = 0.0, 0.0  # patches per second; share of the time
        self._loss: float | None = None
        self._psnr: float | None = None
        self._line = ProgressLine(self._parts, clock=clock)
        self._trackers = Trackers(run, start, self.say) if distributed.is_main_process() else None
        self._profiler = self._trace() if profile and distributed.is_main_process() else None

    def __enter__(self) -> Self:
        self._calibrate()
        if self._profiler is not None:
            self._profiler.start()
        self._line.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._line.__exit__(kind, value, traceback)
        if self._profiler is not None:
            self._profiler.stop()
        if kind is None and self._timed:
            speed = self._timed * self.run.config.train.batch_size / self._seconds
            self.say(
                f"{self._done - self._begin} steps in {duration_in_words(self._first + self._seconds)}, "
                f"{speed:.0f} patches/s{_of_peak(self._share_of_peak(speed), 'peak')}, "
                f"{peak_memory(self.device):.1f} GB"
            )
        if self._trackers is not None:
            self._trackers.close(whole=kind is None)

    def _calibrate(self) -> None:
        """Count what a step's work is, and measure what the device can do, so that the speed has a measure."""
        config = self.run.config
        self._flops = float(training_flops(self.state.network, config.data.patch))
        self._peak = self._measured_peak()
        forget_peak_memory(self.device)  # what was measured, and what trained before, is no part of this training

    def add(self, step: int) -> None:
        """Count one step (from 0)."""
        if self._profiler is not None:
            self._profiler.step()
        if step == self._begin:
            self._counters.accepted.item()  # wait for the device: what follows is the steady state
            self._first = self._clock() - self._since
            self.restart_clock(step + 1)
        self._done = step + 1

    def report(self, step: int) -> None:
        """Write the row of metrics.jsonl and say how far it is; `step` counts from 1. All ranks take part."""
        train, planner, counters = self.run.config.train, self.loader.planner, self._counters
        alpha, learning_rate = planner.weights(step - 1).target, planner.learning_rate(step - 1)
        accepted = int(counters.accepted.item())
        self._loss = counters.loss_sum.item() / accepted if accepted else None
        row = {"loss": self._loss, "alpha": alpha, "learning_rate": learning_rate}
        self.write(step, {**row, "skipped": int(counters.skipped.item())})
        waits = self._measure(step)
        share, memory = self._share_of_peak(self._speed), peak_memory(self.device)
        said = "none accepted" if self._loss is None else f"{self._loss:.4f}"
        self._line.report(
            f"{self.label} step {step}/{train.steps}  loss {said}  alpha {alpha:.3f}  "
            f"learning rate {learning_rate:.2e}  {self._speed:.1f} patches/s  "
            f"{self._speed * self._flops / 1e12:.2f} TFLOP/s{_of_peak(share, 'the measured peak')}  "
            f"waiting for data {self._waiting:.1%}  memory {memory:.1f} GB  left {self._left()}"
        )
        conditions = {"patches_per_second": self._speed, "share_of_peak": share}
        self._plot(step, {**conditions, "waiting_for_data": self._waiting, "memory_gb": memory})
        self._name_skips(step)
        if self._waiting > WAIT_WARNING:
            who = f" on rank {waits.index(self._waiting)}" if len(waits) > 1 else ""
            advice = ADVICE[self.run.config.data.source]
            self.say(f"warning: {self._waiting:.1%} of the time is spent waiting for data{who}; {advice}")
        if (shares := self.stopwatch.shares()) is not None:
            self._plot(step, {f"step_{stage}": share for stage, share in shares.items()})
        for since_the_report in (counters.loss_sum, counters.accepted, counters.skips):
            since_the_report.zero_()
        self.restart_clock(step)

    def _measure(self, step: int) -> list[float]:
        """Take the speed since the last report; returns each rank's share of waiting. The first rank's clock counts."""
        elapsed, steps = self._clock() - self._since, step - self._step
        measured = distributed.all_gather((elapsed, (self.loader.waited - self._waited) / elapsed))
        elapsed, waits = measured[0][0], [waited for _, waited in measured]
        self._waiting = max(waits)
        if steps:
            self._speed = steps * self.run.config.train.batch_size / elapsed
        self._seconds, self._timed = self._seconds + elapsed, self._timed + steps
        return waits

    def _share_of_peak(self, speed: float) -> float | None:
        """Of the peak that was measured, or now is, where it was too low; None where other programs do not let it."""
        if self._peak and speed * self._flops > self._peak:
            self._peak = self._measured_peak(again=True)
            if speed * self._flops > self._peak:
                self._peak = 0.0
                self.say("the machine's peak is unknown: twice it was measured below the training's own speed")
        return speed * self._flops / self._peak if self._peak else None

    def _measured_peak(self, *, again: bool = False) -> float:
        """Of all devices together."""
        dtype = self.state.precision.dtype or torch.float32
        return sum(distributed.all_gather(measured_peak(self.device, dtype, again=again)))

    def _left(self) -> str:
        steps = self.run.config.train.steps - self._done
        return duration_in_words(steps * self.run.config.train.batch_size / self._speed) if self._speed else "unknown"

    def _parts(self) -> list[str]:
        """The line of a terminal; the thread that draws it reads what the last report has left."""
        parts = [f"{self.label} {self._done}/{self.run.config.train.steps}"]
        if not self._speed:
            return [*parts, "first step" if self._done == self._begin else "measuring"]
        parts += [f"{self._left()} left", f"loss {self._loss:.3g}" if self._loss is not None else "no step accepted"]
        parts += [f"{self._psnr:.2f} dB"] if self._psnr is not None else []
        return [*parts, f"{self._speed:.0f} patches/s", f"waiting {self._waiting:.0%}"]

    def restart_clock(self, step: int) -> None:
        """Leave what happened since the last report (validation, a checkpoint) out of the speed."""
        self._step, self._since, self._waited = step, self._clock(), self.loader.waited

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Add a row to metrics.jsonl, and tell the trackers."""
        self._psnr = row.get("psnr_y", self._psnr)
        if distributed.is_main_process():
            self.run.append({"step": step, **row})
            self._plot(step, row)

    def say(self, words: str) -> None:
        """Print a line that is to be kept."""
        self._line.say(f"{self.label} {words}")

    def _name_skips(self, step: int) -> None:
        """Say which steps were skipped since the last report, and what was in their batches."""
        places = self._counters.skips.nonzero().flatten().tolist()
        interval = len(self._counters.skips)
        first = (step - 1) // interval * interval  # an interval's steps lie in order
        for place in places[:NAMED_SKIPS]:
            images = sorted(set(self.loader.planner.sampler.plan(first + place).image))
            named = ", ".join(self.entries[image].name for image in images)
            self.say(
                f"skipped step {first + place + 1}: loss {self._counters.losses[place].item():.4g}; images {named}"
            )
        if len(places) > NAMED_SKIPS:
            self.say(f"skipped {len(places) - NAMED_SKIPS} more of the last {interval} steps")

    def _plot(self, step: int, row: Mapping[str, Any]) -> None:
        if self._trackers is not None:
            self._trackers.log(step, row)

    def _trace(self) -> torch.profiler.profile:
        path = self.run.folder / "trace.json"

        def keep(profiler: torch.profiler.profile) -> None:
            profiler.export_chrome_trace(str(path))
            self.say(f"trace of {TRACED} steps: {path}; open it in a browser, at ui.perfetto.dev")

        schedule = torch.profiler.schedule(wait=3, warmup=1, active=TRACED, repeat=1)
        return torch.profiler.profile(schedule=schedule, on_trace_ready=keep)


def _of_peak(share: float | None, peak: str) -> str:
    return "" if share is None else f", {share:.0%} of {peak}"
