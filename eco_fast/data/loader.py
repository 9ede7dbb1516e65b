"""What loaders have in common, and the plain one: windows of the store, flipped and transposed, as uint8 batches.

Every window carries a margin of 2 * scale HR pixels a side, so that its LR image equals the crop of the whole image's;
beyond the picture's edge the margin is MATLAB's symmetric extension.
"""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
from eco_fast_kernels import empty_crops, margin_of, symmetric_indices
from torch import Tensor

from eco_fast.config import Config
from eco_fast.data.batch import Batch, Planner
from eco_fast.data.images import Pixels
from eco_fast.data.sampler import Plan

Indices = npt.NDArray[np.int64]
Made = TypeVar("Made")
"""A batch as the thread leaves it for the consumer."""


class Loader(ABC, Generic[Made]):
    """Iterates over the batches of the steps `start..config.train.steps - 1`; a context manager that ends its thread.

    Args:
        planner: what the batches hold.
        start: first step.
        ahead: groups of batches that may wait for the consumer.
        group: batches that the thread makes in one go. It disturbs the training whenever it wakes up: where batches are
            small, the fewer times the better.
    """

    def __init__(self, planner: Planner, start: int, ahead: int, group: int = 1) -> None:
        self.config, self.planner, self.group = planner.config, planner, group
        self.waited = 0.0
        """Seconds that the consumer has spent waiting for batches."""
        self._steps = iter(range(start, self.config.train.steps))
        self._ready: queue.Queue[list[Made | Exception | None]] = queue.Queue(maxsize=ahead)
        self._taken: deque[Made | Exception | None] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _make(self, step: int) -> Made:
        """Assemble the batch of the next step, in the thread."""

    @abstractmethod
    def _hand_over(self, made: Made) -> Batch:
        """What the consumer gets, in its own thread."""

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
        item = self._next_ready() if self._thread is not None else self._next_made()
        self.waited += time.perf_counter() - began
        if item is None or isinstance(item, Exception):
            if self._thread is not None:
                self._taken.append(item)  # the thread has ended: whoever asks again gets the same answer
            raise StopIteration if item is None else item
        return self._hand_over(item)

    def _next_ready(self) -> Made | Exception | None:
        if not self._taken:
            self._taken.extend(self._ready.get())
        return self._taken.popleft()

    def _next_made(self) -> Made | None:
        step = next(self._steps, None)
        return None if step is None else self._make(step)

    def _work(self) -> None:
        ended = False
        while not ended and not self._stop.is_set():
            made: list[Made | Exception | None] = []
            while not ended and len(made) < self.group:
                try:
                    made.append(self._next_made())
                except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
                    made.append(error)
                ended = made[-1] is None or isinstance(made[-1], Exception)
            while not self._stop.is_set():
                try:
                    self._ready.put(made, timeout=0.1)
                    break
                except queue.Full:
                    continue


class PlainLoader(Loader[Batch]):
    """Numpy and torch alone, on the CPU; the batch of any step can be asked for.

    Args:
        config: the recipe.
        hr: uint8 [H, W, 3] pictures.
        sr: their centroids, or None for objectives that need none.
        start: first step.
        rank: which part of each global batch to load, 0..world - 1.
        world: number of parts.
    """

    def __init__(
        self,
        config: Config,
        hr: Sequence[Pixels],
        sr: Sequence[Pixels] | None,
        start: int = 0,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        planner = Planner(config, [(image.shape[0], image.shape[1]) for image in hr], rank, world)
        super().__init__(planner, start, ahead=max(config.data.prefetch, 1))
        self.hr, self.sr = hr, sr

    def batch_at(self, step: int) -> Batch:
        """Assemble the batch of any step."""
        plan, mix = self.planner.plan(step), self.planner.mix(step)
        return self.planner.batch(
            step,
            hr=self._windows(self.hr, plan) if mix.reads_hr else None,
            sr=self._windows(self.sr, plan) if mix.reads_sr and self.sr is not None else None,
        )

    def _make(self, step: int) -> Batch:
        return self.batch_at(step)

    def _hand_over(self, made: Batch) -> Batch:
        return made

    def _windows(self, images: Sequence[Pixels], plan: Plan) -> Tensor:
        windows = empty_crops(len(plan.image), self.planner.side, margin_of(self.config.scale))
        cut_windows(images, plan, self.config, windows.numpy())
        return windows


def cut_windows(images: Sequence[Pixels], plan: Plan, config: Config, out: Pixels, *, turned: bool = True) -> None:
    """Copy the plan's windows to `out`, uint8 [N, side, side, 3], whose rows are contiguous, turned or not."""
    margin, inner = margin_of(config.scale), config.scale * config.data.patch
    places = _whole_pixels(out)
    samples = zip(*(value.tolist() for name, value in vars(plan).items() if name != "chance"), strict=True)
    for place, (image, top, left, flip_rows, flip_columns, transpose) in zip(places, samples, strict=True):
        window = _whole_pixels(cut_window(images[image], top, left, inner, margin, config.scale))
        if turned and flip_rows:
            window = window[::-1]
        if turned and flip_columns:
            window = window[:, ::-1]
        place[:] = window.T if turned and transpose else window


def _whole_pixels(pixels: Pixels) -> npt.NDArray[np.void]:
    """A view with one element per pixel: mirrored and transposed copies take half the time."""
    return pixels.view("V3")[..., 0]


def cut_window(image: Pixels, top: int, left: int, inner: int, margin: int, scale: int) -> Pixels:
    """A window of `inner` pixels a side at (top, left), with its margin; [inner + 2*margin, inner + 2*margin, C]."""
    axes: list[tuple[int, int, Indices | None]] = []
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
