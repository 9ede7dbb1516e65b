"""The plain loader: windows of the store, flipped and transposed, as uint8 batches, assembled ahead.

Every window carries a margin of 2 * scale HR pixels a side, so that its LR image equals the crop of the whole image's;
beyond the picture's edge the margin is MATLAB's symmetric extension.
"""

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from eco_fast_kernels import empty_windows, margin_of, move_windows, symmetric_indices
from torch import Tensor

from eco_fast.config import Config
from eco_fast.images import Pixels
from eco_fast.objective import Mix, mix_at
from eco_fast.sampler import Plan, Sampler


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One step's samples, with the mix that they are to be blended with."""

    step: int
    hr: Tensor | None
    """uint8 [N, P, P, 3] with P = scale * (patch + 4), as `eco_fast_kernels.windows` lays it out; None if not read."""
    sr: Tensor | None
    """The centroid's windows, likewise."""
    transposed: Tensor
    """bool [N]: rows and columns are swapped."""
    mix: Mix
    input_alpha: Tensor
    """float32 [], or [N] under `alpha_sample`: weight of HR in the network's input."""
    target_alpha: Tensor
    """The same in the target."""

    def to(self, device: str) -> "Batch":
        """A copy on the device."""
        return replace(
            self,
            hr=None if self.hr is None else move_windows(self.hr, device),
            sr=None if self.sr is None else move_windows(self.sr, device),
            transposed=self.transposed.to(device, non_blocking=True),
            input_alpha=self.input_alpha.to(device, non_blocking=True),
            target_alpha=self.target_alpha.to(device, non_blocking=True),
        )


class PlainLoader:
    """Iterates over the batches of the steps `start..config.train.steps - 1`; a context manager that ends its thread.

    Args:
        config: the recipe.
        hr: uint8 [H, W, 3] pictures.
        sr: their centroids, or None for objectives that need none.
        start: first step.
    """

    def __init__(self, config: Config, hr: Sequence[Pixels], sr: Sequence[Pixels] | None, start: int = 0) -> None:
        self.config, self.hr, self.sr = config, hr, sr
        self.waited = 0.0
        """Seconds that the consumer has spent waiting for batches."""
        sizes = [
            (image.shape[0] // config.scale * config.scale, image.shape[1] // config.scale * config.scale)
            for image in hr
        ]
        self.sampler = Sampler(
            sizes, scale=config.scale, patch=config.data.patch, batch=config.train.batch, seed=config.seed
        )
        self._steps = iter(range(start, config.train.steps))
        self._ready: queue.Queue[Batch | BaseException | None] = queue.Queue(maxsize=max(config.data.prefetch, 1))
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        if self.config.data.prefetch:
            self._thread = threading.Thread(target=self._work, name="loader", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        began = time.perf_counter()
        item = self._ready.get() if self._thread is not None else self._next_made()
        self.waited += time.perf_counter() - began
        if isinstance(item, Batch):
            return item
        if self._thread is not None:
            self._ready.put(item)  # the thread has ended: whoever asks again gets the same answer
        raise StopIteration if item is None else item

    def batch_at(self, step: int) -> Batch:
        """Assemble the batch of any step."""
        plan = self.sampler.plan(step)
        mix = mix_at(self.config.objective, step, self.config.train.steps)
        transposed = torch.from_numpy(plan.transpose)
        if self.config.objective.alpha_sample:
            input_alpha = torch.from_numpy((plan.chance < mix.input).astype(np.float32))
            target_alpha = torch.from_numpy((plan.chance < mix.target).astype(np.float32))
        else:
            input_alpha, target_alpha = torch.tensor(mix.input), torch.tensor(mix.target)
        return Batch(
            step=step,
            hr=self._windows(self.hr, plan) if mix.reads_hr else None,
            sr=self._windows(self.sr, plan) if mix.reads_sr and self.sr is not None else None,
            transposed=transposed,
            mix=mix,
            input_alpha=input_alpha,
            target_alpha=target_alpha,
        )

    def _next_made(self) -> Batch | None:
        step = next(self._steps, None)
        return None if step is None else self.batch_at(step)

    def _work(self) -> None:
        item: Batch | BaseException | None = None
        while not self._stop.is_set():
            try:
                item = self._next_made()
            except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
                item = error
            while not self._stop.is_set():
                try:
                    self._ready.put(item, timeout=0.1)
                    break
                except queue.Full:
                    continue
            if not isinstance(item, Batch):
                return

    def _windows(self, images: Sequence[Pixels], plan: Plan) -> Tensor:
        margin = margin_of(self.config.scale)
        inner = self.config.scale * self.config.data.patch
        side = inner + 2 * margin
        windows = empty_windows(len(plan.image), side, margin)
        out = windows.numpy()
        for index, image in enumerate(plan.image):
            window = cut_window(images[image], plan.top[index], plan.left[index], inner, margin, self.config.scale)
            if plan.flip_rows[index]:
                window = window[::-1]
            if plan.flip_columns[index]:
                window = window[:, ::-1]
            out[index] = window.transpose(1, 0, 2) if plan.transpose[index] else window
        return windows


def cut_window(image: Pixels, top: int, left: int, inner: int, margin: int, scale: int) -> Pixels:
    """A window of `inner` pixels a side at (top, left), with its margin; [inner + 2*margin, inner + 2*margin, C]."""
    axes: list[tuple[int, int, npt.NDArray[np.int64] | None]] = []
    for start, size in ((top, image.shape[0]), (left, image.shape[1])):
        cropped = size // scale * scale  # the border of D is that of the picture cropped to a multiple of the scale
        first, last = start - margin, start + inner + margin
        if first >= 0 and last <= cropped:
            axes.append((first, last, None))
        else:
            indices = symmetric_indices(first, last, cropped)
            low = int(indices.min())
            axes.append((low, int(indices.max()) + 1, indices - low))
    (row_low, row_high, rows), (column_low, column_high, columns) = axes
    window = image[row_low:row_high, column_low:column_high]
    if rows is not None:
        window = window[rows]
    return window if columns is None else window[:, columns]
