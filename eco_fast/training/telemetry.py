"""What a training says while it runs: the mean loss, the speed, where the time goes, and which steps were skipped."""

import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
from torch.utils.tensorboard import SummaryWriter

from eco_fast.data.loader import Loader
from eco_fast.data.sources import ImageEntry
from eco_fast.models import Network
from eco_fast.training.precision import Precision
from eco_fast.training.profiling import Stopwatch, forget_peak_memory, measured_peak, peak_memory, training_flops
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.state import TrainingState
from eco_fast.utils import distributed

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
    ) -> None:
        device, start = state.device, state.start
        self.run, self.loader, self.entries, self.state, self.label = run, loader, entries, state, label
        self.device, self.stopwatch = device, Stopwatch(device)
        self._counters = state.updater.counters
        self._flops, self._peak = 0.0, 1.0
        self._begin, self._step = start, start
        self._since = time.perf_counter()
        self._waited = 0.0
        self._board = (
            SummaryWriter(str(run.folder), purge_step=start or None) if distributed.is_main_process() else None
        )
        self._profiler = self._trace() if profile and distributed.is_main_process() else None

    def __enter__(self) -> Self:
        self._calibrate(self.state.network, self.state.precision)
        if self._profiler is not None:
            self._profiler.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._profiler is not None:
            self._profiler.stop()
        if self._board is not None:
            self._board.close()

    def _calibrate(self, network: Network, precision: Precision) -> None:
        """Count what a step's work is, and measure what the device can do, so that the speed has a measure."""
        config = self.run.config
        self._flops = float(training_flops(network, config.data.patch))
        self._peak = sum(distributed.all_gather(measured_peak(self.device, precision.dtype or torch.float32)))
        forget_peak_memory(self.device)  # what was measured, and what trained before, is no part of this training

    def add(self, step: int) -> None:
        """Count one step (from 0)."""
        if self._profiler is not None:
            self._profiler.step()
        if step == self._begin:
            self._counters.accepted.item()  # wait for the device: what follows is the steady state
            self.say(f"first step, with compilation: {time.perf_counter() - self._since:.1f} s")
            self.restart_clock(step + 1)

    def report(self, step: int) -> None:
        """Write the row of metrics.jsonl and print the progress line; `step` counts from 1. All ranks take part."""
        train, planner, counters = self.run.config.train, self.loader.planner, self._counters
        alpha, learning_rate = planner.weights(step - 1).target, planner.learning_rate(step - 1)
        accepted = int(counters.accepted.item())
        loss = counters.loss_sum.item() / accepted if accepted else None
        row = {"loss": loss, "alpha": alpha, "learning_rate": learning_rate, "skipped": int(counters.skipped.item())}
        self.write(step, row)
        elapsed, steps = time.perf_counter() - self._since, step - self._step
        waits = distributed.all_gather((self.loader.waited - self._waited) / elapsed)
        waiting = max(waits)
        speed = steps * train.batch_size / elapsed
        share = speed * self._flops / self._peak
        left = timedelta(seconds=round((train.steps - step) * elapsed / max(steps, 1)))
        said = "none accepted" if loss is None else f"{loss:.4f}"
        rate = f"{speed:.1f} patches/s  {speed * self._flops / 1e12:.2f} TFLOP/s, {share:.0%} of the measured peak"
        self.say(
            f"step {step}/{train.steps}  loss {said}  alpha {alpha:.3f}  learning rate {learning_rate:.2e}  "
            f"{rate}  waiting for data {waiting:.1%}  memory {peak_memory(self.device):.1f} GB  left {left}"
        )
        if steps:
            conditions = {"patches_per_second": speed, "share_of_peak": share, "waiting_for_data": waiting}
            self._plot(step, {**conditions, "memory_gb": peak_memory(self.device)})
        self._name_skips(step)
        if waiting > WAIT_WARNING:
            who = f" on rank {waits.index(waiting)}" if len(waits) > 1 else ""
            advice = ADVICE[self.run.config.data.source]
            self.say(f"warning: {waiting:.1%} of the time is spent waiting for data{who}; {advice}")
        if (shares := self.stopwatch.shares()) is not None:
            self.say("time of a step: " + ", ".join(f"{stage} {share:.0%}" for stage, share in shares.items()))
            self._plot(step, {f"step_{stage}": share for stage, share in shares.items()})
        for since_the_report in (counters.loss_sum, counters.accepted, counters.skips):
            since_the_report.zero_()
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Leave what happened since the last report (validation, a checkpoint) out of the speed."""
        self._step, self._since, self._waited = step, time.perf_counter(), self.loader.waited

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Add a row to metrics.jsonl and to TensorBoard."""
        if distributed.is_main_process():
            self.run.append({"step": step, **row})
            self._plot(step, row)

    def say(self, words: str) -> None:
        """Print a line."""
        print(f"{self.label} {words}", flush=True)

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
        for name, value in row.items():
            if value is not None and self._board is not None:
                self._board.add_scalar(name, value, step)

    def _trace(self) -> torch.profiler.profile:
        path = self.run.folder / "trace.json"

        def keep(profiler: torch.profiler.profile) -> None:
            profiler.export_chrome_trace(str(path))
            self.say(f"trace of {TRACED} steps: {path}; open it in a browser, at ui.perfetto.dev")

        schedule = torch.profiler.schedule(wait=3, warmup=1, active=TRACED, repeat=1)
        return torch.profiler.profile(schedule=schedule, on_trace_ready=keep)
