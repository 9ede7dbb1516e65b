"""The DALI loader: the plain loader's batches, byte for byte, from one graph that runs on the CPU or on a GPU.

Each kind of step has a pipeline, so that images are not read where the blend ignores them: centroids alone, both, HR
alone. Small batches of crops go through a pipeline several steps at a time, because a pipeline run has a fixed
overhead. On a GPU the crops are copied as they were cut, and everything behind that happens there. DALI's buffers
become tensors without a copy, in the consumer's thread: DALI makes its stream wait for the data. It does not wait for
the consumer's stream when it takes them back: on a GPU they are for `DaliDeviceLoader` alone, which copies them.
"""

import os
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
import torch
from eco_fast_kernels import margin_of
from torch.utils.dlpack import from_dlpack

from eco_fast.config import Config
from eco_fast.data.batch import Batch, BatchPlan, BatchPlanner, Conditions, Crops, Samples
from eco_fast.data.dali_graph import Inputs, crop_graph
from eco_fast.data.loader import Loader, fill_crops
from eco_fast.data.sampler import CropPlan
from eco_fast.data.sources import ImageSource, sizes_of

STEPS_PER_FETCH = 8  # steps at most that go through a pipeline together
BYTES_PER_FETCH = 4 << 20  # and of about so many bytes of crops, for several groups wait in memory


@dataclass(frozen=True)
class CropGroup:
    """What one pipeline run made: the crops of several steps.

    Attributes:
        buffers: DALI's, each with the samples of all steps; None for what is not read.
        count: samples of a step.
    """

    buffers: tuple[Any, ...]
    count: int

    @property
    def steps(self) -> int:
        """How many the group has."""
        return len(next(one for one in self.buffers if one is not None)) // self.count

    @cached_property
    def crops(self) -> Crops:
        """The same memory as tensors, for the thread and the stream that first ask."""
        return Crops._make(None if one is None else from_dlpack(one.as_tensor()) for one in self.buffers)

    def at(self, place: int) -> Crops:
        """Those of one step of the group, counted from 0."""
        samples = slice(place * self.count, (place + 1) * self.count)
        return Crops._make(None if tensor is None else tensor[samples] for tensor in self.crops)


@dataclass(frozen=True)
class DaliBatch:
    """A batch whose crops are still DALI's."""

    step: int
    conditions: Conditions
    group: CropGroup
    place: int
    """Of the step in its group."""


class CropStreams:
    """The crops of all steps, from as many pipelines as there are kinds of step.

    Args:
        planner: which crops.
        hr: images, decoded or files.
        sr: their centroids, or None for objectives that need none.
        device: where they are made: "cpu", "cuda" or "cuda:N".
        steps_per_fetch: steps that go through a pipeline together.
    """

    def __init__(
        self, planner: BatchPlanner, hr: ImageSource | None, sr: ImageSource | None, device: str, steps_per_fetch: int
    ) -> None:
        self._planner, self._hr, self._sr, self._device = planner, hr, sr, device
        self._steps_per_fetch = steps_per_fetch
        self._streams: dict[tuple[bool, bool], _Stream] = {}

    def take(self, step: int) -> tuple[BatchPlan, CropGroup, int]:
        """The plan of the next step, the group that its crops are in, and its place there."""
        weights = self._planner.weights(step)
        kind = (weights.reads_hr, weights.reads_sr and self._sr is not None)
        if kind not in self._streams:
            hr, sr = (source if reads else None for source, reads in zip((self._hr, self._sr), kind, strict=True))
            self._streams[kind] = _Stream(self._planner, hr, sr, step, self._device, self._steps_per_fetch)
        return self._streams[kind].take(step)

    def close(self) -> None:
        """End DALI's threads."""
        for stream in self._streams.values():
            stream.close()


class DaliLoader(Loader[DaliBatch]):
    """Crops assembled by DALI on a CPU.

    Args:
        config: the recipe.
        hr: images, decoded or files.
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
        super().__init__(planner, start, prefetch=1, steps_per_fetch=steps_together(planner, hr))  # DALI keeps more
        self._streams = CropStreams(planner, hr, sr, "cpu", self.steps_per_fetch)

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, traceback)
        self._streams.close()

    def _prepare(self, step: int) -> DaliBatch:
        plan, group, place = self._streams.take(step)
        return DaliBatch(step, self.planner.conditions(plan), group, place)

    def _finish(self, prepared: DaliBatch) -> Batch[Samples]:
        return Batch(prepared.step, Samples.of(prepared.group.at(prepared.place), prepared.conditions))


class _Stream:
    """The crops of one kind of step, step after step.

    DALI asks for its inputs by an index, some runs ahead. What was planned for them waits in a queue until the step is
    taken; an image that cannot be read ends the stream there, behind the batches that are under way.

    Args:
        planner: which crops.
        hr: where from; None where this kind of step does not read it.
        sr: likewise.
        first: the first step that reads them.
        device: see `CropStreams`.
        steps_per_fetch: steps that are read together.
    """

    def __init__(
        self,
        planner: BatchPlanner,
        hr: ImageSource | None,
        sr: ImageSource | None,
        first: int,
        device: str,
        steps_per_fetch: int,
    ) -> None:
        self._planner, self._first, self._steps_per_fetch = planner, first, steps_per_fetch
        self._reads = (hr is not None, sr is not None)
        self._sources = [source for source in (hr, sr) if source is not None]
        self._device = torch.device(device)
        data = planner.config.data
        encoded = any(source.encoded for source in self._sources)
        # numpy turns crops on their way at a third of the price of DALI's transposition on a CPU
        self._cuts_turned = self._device.type == "cpu" and not encoded and data.downsample != "dali"
        self._error: Exception | None = None
        self._plans: deque[BatchPlan] = deque()
        self._next = first
        self._group: CropGroup | None = None
        depth = max(-(-data.prefetch // steps_per_fetch), 1)
        self._pipeline = self._build(self._sources, self._inputs_at, steps_per_fetch * planner.count, depth)

    def take(self, step: int) -> tuple[BatchPlan, CropGroup, int]:
        """The plan of the next step of this kind, the group that its crops are in, and its place there."""
        assert step == self._next, "steps of one kind are one stretch"
        self._next += 1
        place = (step - self._first) % self._steps_per_fetch
        if self._group is None or place in (0, self._group.steps):  # a group ends early before a broken image
            self._group = self._run()
        return self._plans.popleft(), self._group, place

    def close(self) -> None:
        """End DALI's threads."""
        self._pipeline = None

    def _run(self) -> CropGroup:
        """The next group."""
        try:
            outputs: tuple[Any, ...] = self._pipeline.run()
        except StopIteration:
            assert self._error is not None  # the stream ends behind the last step alone
            raise self._error from None
        except RuntimeError as error:
            raise ValueError(self._culprit(self._plans[0], error)) from error
        found = iter(outputs)
        # the crops of all sources come first, then their LR images, where the graph makes them
        return CropGroup(
            tuple(next(found, None) if reads else None for reads in (*self._reads, *self._reads)), self._planner.count
        )

    def _inputs_at(self, index: int) -> Inputs:
        step, last = self._first + index * self._steps_per_fetch, self._planner.config.train.steps
        if self._error is not None or step >= last:
            raise StopIteration
        parts: list[Inputs] = []
        for one in range(step, min(step + self._steps_per_fetch, last)):
            plan = self._planner.plan(one)
            try:
                parts.append(self._read(self._sources, plan.crops))
            except Exception as error:  # noqa: BLE001 - for the consumer, after the batches that are under way
                self._error = error
                break
            self._plans.append(plan)
        if not parts:
            raise StopIteration
        return parts[0] if len(parts) == 1 else [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _read(self, sources: list[ImageSource], plan: CropPlan) -> Inputs:
        orientation = np.stack([plan.flip_rows, plan.flip_columns, plan.transpose], axis=1).astype(np.int32)
        inputs = [np.zeros_like(orientation) if self._cuts_turned else orientation]
        for source in sources:
            inputs += self._cut(source, plan)
        return inputs

    def _cut(self, source: ImageSource, plan: CropPlan) -> Inputs:
        config, side = self._planner.config, self._planner.side
        if not source.encoded:
            cut = np.empty((len(plan.image), side, side, 3), dtype=np.uint8)
            fill_crops(source, plan, config.scale, config.data.patch, cut, turned=self._cuts_turned)
            return [cut]
        first = np.stack([plan.top, plan.left], axis=1) - margin_of(config.scale)
        ends = self._planner.sizes[plan.image]
        low, high = np.maximum(first, 0), np.minimum(first + side, ends)
        files = [source.read(image) for image in plan.image]
        return [files, *(value.astype(np.int32) for value in (low, high - low, first - low))]

    def _build(
        self, sources: list[ImageSource], inputs_at: Callable[[int], Inputs], batch_size: int, depth: int
    ) -> Any:
        data, on_gpu = self._planner.config.data, self._device.type == "cuda"
        encoded = [source.encoded for source in sources]
        pipeline = crop_graph(
            inputs_at,
            encoded=encoded,
            device="gpu" if on_gpu else "cpu",
            scale=self._planner.config.scale,
            patch=data.patch,
            rounding=data.rounding if data.downsample == "dali" else None,
            batch_size=batch_size,
            # decoding takes all the cores there are; the rest is little, and more threads only disturb the training
            num_threads=min(len(os.sched_getaffinity(0)), batch_size) if any(encoded) else 1,
            device_id=self._device.index or 0 if on_gpu else None,
            prefetch_queue_depth=depth,
        )
        pipeline.build()
        return pipeline

    def _culprit(self, plan: BatchPlan, error: Exception) -> str:
        """Name the file that does not decode: DALI knows its bytes alone, so each file of the batch is tried."""
        for source in self._sources:
            for sample, image in enumerate(plan.crops.image) if source.encoded else ():
                if not self._decodes(source, plan.crops.part(slice(sample, sample + 1))):
                    return f"{source.path(image)}: the image is damaged, DALI cannot decode it"
        return f"DALI stopped at step {plan.step}: {error}"

    def _decodes(self, source: ImageSource, alone: CropPlan) -> bool:
        try:
            self._build([source], lambda _: self._read([source], alone), 1, 1).run()
        except RuntimeError:
            return False
        return True


def steps_together(planner: BatchPlanner, source: ImageSource) -> int:
    """Steps that go through a pipeline together; files one by one, since decoding them is what takes the time."""
    if source.encoded:
        return 1
    return min(max(BYTES_PER_FETCH // (planner.count * planner.side**2 * 3), 1), STEPS_PER_FETCH)
