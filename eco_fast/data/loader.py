"""What loaders have in common, and the plain one: crops of the store, flipped and transposed, as uint8 batches.

Every crop carries a margin of 2 * scale HR pixels a side, so that its LR image equals the crop of the whole image's;
beyond the image's edge the margin is MATLAB's symmetric extension.
"""

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

import numpy as np
import numpy.typing as npt
from eco_fast_kernels import empty_crops, margin_of, symmetric_indices
from torch import Tensor

from eco_fast.config import Config
from eco_fast.data.batch import Batch, BatchPlanner, Crops, Samples
from eco_fast.data.images import Pixels
from eco_fast.data.sampler import CropPlan
from eco_fast.data.sources import ImageSource, sizes_of

Indices = npt.NDArray[np.int64]
Prepared = TypeVar("Prepared")
"""A batch as the thread leaves it for the consumer."""


class Loader(ABC, Generic[Prepared]):
    """Iterates over the batches of the steps `start..config.train.steps - 1`; a context manager that ends its thread.

    Args:
        planner: what the batches hold.
        start: first step.
        prefetch: groups of batches that may wait for the consumer.
        steps_per_fetch: batches that the thread prepares in one go. It disturbs the training whenever it wakes up:
            where batches are small, the fewer times the better.
    """

    def __init__(self, planner: BatchPlanner, start: int, prefetch: int, steps_per_fetch: int = 1) -> None:
        self.config, self.planner, self.steps_per_fetch = planner.config, planner, steps_per_fetch
        self.waited = 0.0
        """Seconds that the consumer has spent waiting for batches."""
        self._steps = iter(range(start, self.config.train.steps))
        self._ready: queue.Queue[list[Prepared | Exception | None]] = queue.Queue(maxsize=prefetch)
        self._taken: deque[Prepared | Exception | None] = deque()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @abstractmethod
    def _prepare(self, step: int) -> Prepared:
        """Assemble the batch of the next step, in the thread."""

    @abstractmethod
    def _finish(self, prepared: Prepared) -> Batch[Any]:
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

    def __next__(self) -> Batch[Any]:
        began = time.perf_counter()
        item = self._next_ready() if self._thread is not None else self._next_prepared()
        self.waited += time.perf_counter() - began
        if item is None or isinstance(item, Exception):
            if self._thread is not None:
                self._taken.append(item)  # the thread has ended: whoever asks again gets the same answer
            raise StopIteration if item is None else item
        return self._finish(item)

    def _next_ready(self) -> Prepared | Exception | None:
        if not self._taken:
            self._taken.extend(self._ready.get())
        return self._taken.popleft()

    def _next_prepared(self) -> Prepared | None:
        step = next(self._steps, None)
        return None if step is None else self._prepare(step)

    def _work(self) -> None:
        ended = False
        while not ended and not self._stop.is_set():
            group: list[Prepared | Exception | None] = []
            while not ended and len(group) < self.steps_per_fetch:
                try:
                    group.append(self._next_prepared())
                except Exception as error:  # noqa: BLE001 - handed to the consumer, which raises it
                    group.append(error)
                ended = group[-1] is None or isinstance(group[-1], Exception)
            while not self._stop.is_set():
                try:
                    self._ready.put(group, timeout=0.1)
                    break
                except queue.Full:
                    continue


class PlainLoader(Loader[Batch[Samples]]):
    """Numpy and torch alone, on the CPU; the batch of any step can be asked for.

    Args:
        config: the recipe.
        hr: decoded images.
        sr: their centroids, or None for objectives that need none.
        start: first step.
        rank: which part of each global batch to load, 0..world_size - 1.
        world_size: number of parts.
    """

    def __init__(
        self,
        config: Config,
        hr: ImageSource,
        sr: ImageSource | None,
        start: int = 0,
        *,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        planner = BatchPlanner(config, sizes_of(hr), rank, world_size)
        super().__init__(planner, start, prefetch=max(config.data.prefetch, 1))
        self.hr, self.sr = hr, sr

    def batch_at(self, step: int) -> Batch[Samples]:
        """Assemble the batch of any step."""
        plan = self.planner.plan(step)
        crops = Crops(
            hr=self._crops(self.hr, plan.crops) if plan.weights.reads_hr else None,
            sr=self._crops(self.sr, plan.crops) if plan.weights.reads_sr and self.sr is not None else None,
        )
        return Batch(step, Samples.of(crops, self.planner.conditions(plan)))

    def _prepare(self, step: int) -> Batch[Samples]:
        return self.batch_at(step)

    def _finish(self, prepared: Batch[Samples]) -> Batch[Samples]:
        return prepared

    def _crops(self, source: ImageSource, plan: CropPlan) -> Tensor:
        scale, patch = self.config.scale, self.config.data.patch
        crops = empty_crops(len(plan.image), self.planner.side, margin_of(scale))
        fill_crops(source, plan, scale, patch, crops.numpy())
        return crops


def fill_crops(
    source: ImageSource, plan: CropPlan, scale: int, patch: int, out: Pixels, *, turned: bool = True
) -> None:
    """Copy the plan's crops to `out`, uint8 [N, side, side, 3], whose rows are contiguous; flipped, or as they lie."""
    margin, inner = margin_of(scale), scale * patch
    for place, (image, top, left, flip_rows, flip_columns, transpose) in zip(
        _whole_pixels(out), _samples(plan), strict=True
    ):
        crop = _whole_pixels(cut_crop(source.read(image), top, left, inner, margin, scale))
        if turned and flip_rows:
            crop = crop[::-1]
        if turned and flip_columns:
            crop = crop[:, ::-1]
        place[:] = crop.T if turned and transpose else crop


def _samples(plan: CropPlan) -> Iterator[tuple[int, int, int, bool, bool, bool]]:
    """Python's own numbers: a loop over numpy's takes twice as long."""
    arrays = (plan.image, plan.top, plan.left, plan.flip_rows, plan.flip_columns, plan.transpose)
    return zip(*(values.tolist() for values in arrays), strict=True)


def _whole_pixels(pixels: Pixels) -> npt.NDArray[np.void]:
    """A view with one element per pixel: mirrored and transposed copies take half the time."""
    return pixels.view("V3")[..., 0]


def cut_crop(image: Pixels, top: int, left: int, inner: int, margin: int, scale: int) -> Pixels:
    """A crop of `inner` pixels a side at (top, left), with its margin; [inner + 2*margin, inner + 2*margin, C]."""
    axes: list[tuple[int, int, Indices | None]] = []
    for start, size in ((top, image.shape[0]), (left, image.shape[1])):
        cropped = size // scale * scale  # the border of D is that of the image cropped to a multiple of the scale
        first, last = start - margin, start + inner + margin
        if first >= 0 and last <= cropped:
            axes.append((first, last, None))
        else:
            indices = symmetric_indices(first, last, cropped)
            low = int(indices.min())
            axes.append((low, int(indices.max()) + 1, indices - low))
    (row_low, row_high, rows), (column_low, column_high, columns) = axes
    crop = image[row_low:row_high, column_low:column_high]
    if rows is not None:
        crop = crop[rows]
    return crop if columns is None else crop[:, columns]
