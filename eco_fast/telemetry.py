"""What a training says while it runs: the mean loss, the speed, and where the time goes."""

import time
from collections.abc import Mapping
from datetime import timedelta
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from eco_fast.loader import Loader
from eco_fast.run_folder import RunFolder

WAIT_WARNING = 0.05  # share of the time above which waiting for data is worth a sentence


class Telemetry:
    """Collects on the device, and speaks at every log interval; the only place in the loop that waits for the device.

    Args:
        run: where the rows go.
        loader: whose waiting is measured.
        device: where the losses are.
        start: first step of this process.
        label: precedes every line.
    """

    def __init__(self, run: RunFolder, loader: Loader[Any], device: str, start: int, label: str) -> None:
        self.run, self.loader, self.label = run, loader, label
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        self.accepted = torch.zeros((), dtype=torch.int64, device=device)
        self._step = start
        self._since = time.perf_counter()
        self._waited = 0.0
        self._first = True
        self._board = SummaryWriter(str(run.folder), purge_step=start or None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._board.close()

    def add(self, loss: Tensor, skip: Tensor) -> None:
        """Count one step's loss (float32 []) unless it was skipped (bool [])."""
        self.loss_sum += torch.where(skip, 0.0, loss.detach())
        self.accepted += ~skip
        if self._first:
            self._first = False
            self.loss_sum.item()  # wait for the device: what follows is the steady state
            print(f"{self.label} first step, with compilation: {time.perf_counter() - self._since:.1f} s", flush=True)
            self.restart_clock(self._step + 1)

    def report(self, step: int, *, alpha: float, learning_rate: float, skipped: Tensor) -> None:
        """Write the row of metrics.jsonl and print the progress line; `step` counts from 1."""
        count = int(self.accepted.item())
        loss = self.loss_sum.item() / count if count else None
        row = {"loss": loss, "alpha": alpha, "learning_rate": learning_rate, "skipped": int(skipped.item())}
        self.write(step, row)
        elapsed, steps = time.perf_counter() - self._since, step - self._step
        speed = steps * self.run.config.train.batch / elapsed
        waiting = (self.loader.waited - self._waited) / elapsed
        left = timedelta(seconds=round((self.run.config.train.steps - step) * elapsed / max(steps, 1)))
        said = "none accepted" if loss is None else f"{loss:.4f}"
        if steps:
            self._board.add_scalar("patches_per_second", speed, step)
            self._board.add_scalar("waiting_for_data", waiting, step)
        print(
            f"{self.label} step {step}/{self.run.config.train.steps}  loss {said}  alpha {alpha:.3f}  "
            f"learning rate {learning_rate:.2e}  {speed:.1f} patches/s  waiting for data {waiting:.1%}  left {left}",
            flush=True,
        )
        if waiting > WAIT_WARNING:
            advice = {
                "packed": "put the store on a faster disk, leave it a free core, or raise data.prefetch",
                "encoded": "decode the pictures once, with data.source=packed",
            }[self.run.config.data.source]
            print(f"{self.label} warning: {waiting:.1%} of the time is spent waiting for data; {advice}", flush=True)
        self.loss_sum.zero_()
        self.accepted.zero_()
        self.restart_clock(step)

    def restart_clock(self, step: int) -> None:
        """Leave what happened since the last report (validation, a checkpoint) out of the speed."""
        self._step, self._since, self._waited = step, time.perf_counter(), self.loader.waited

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Add a row to metrics.jsonl and to TensorBoard."""
        self.run.append({"step": step, **row})
        for name, value in row.items():
            if value is not None:
                self._board.add_scalar(name, value, step)

    def state_dict(self) -> dict[str, Tensor]:
        """The sums since the last report."""
        return {"loss_sum": self.loss_sum, "accepted": self.accepted}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue the sums."""
        self.loss_sum.copy_(state["loss_sum"])
        self.accepted.copy_(state["accepted"])
