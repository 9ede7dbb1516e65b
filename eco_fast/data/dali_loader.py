"""The DALI loader: the plain loader's batches, byte for byte, from one graph that runs on the CPU or on a GPU.

    packed    windows cut from the store ---------------------------------+--> flips, transposition --> hr or sr
    encoded   files --decoders.image_slice--> the window, without what ---+
              lies beyond the picture --slice(reflect)--> whole windows   +--> D (`downsample = "dali"`) --> LR

Each kind of step has a pipeline, so that pictures are not read where the mix ignores them: centroids alone, both, HR
alone. A pipeline asks for its inputs by a function of an index alone. Small batches of windows go through it several
steps at a time, for each run has its price, whatever its size. On a GPU the windows are copied as they were cut, and
everything behind the fork happens there. DALI's buffers become tensors without a copy, in the consumer's thread: DALI
makes its stream wait for the data. DALI calls CUDA from threads of its own: a CUDA graph is to be captured with
`capture_error_mode="thread_local"`.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from types import TracebackType
from typing import Any

import numpy as np
import torch
from eco_fast_kernels import margin_of
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import pipeline_def
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from eco_fast.config import Config
from eco_fast.data.batch import Batch, Planner
from eco_fast.data.encoded import EncodedImages
from eco_fast.data.images import Pixels
from eco_fast.data.loader import Loader, cut_windows
from eco_fast.data.sampler import Plan

Inputs = list[Any]
"""One array or list per input of the graph, each with a value per sample."""
Pictures = Sequence[Pixels] | EncodedImages
Kinds = dict[str, Pictures]
"""Pictures under the names of their windows: hr, sr."""
GROUP = 8  # steps at most that go through a pipeline together
GROUP_BYTES = 4 << 20  # and of about so many bytes of windows, for several groups wait in memory


@dataclass(frozen=True)
class Windows:
    """What a pipeline made for a group of steps."""

    images: dict[str, Any]
    """DALI's buffers by name, each with the samples of all steps."""
    count: int
    """Samples of a step."""

    @property
    def steps(self) -> int:
        """How many the group has."""
        return len(next(iter(self.images.values()))) // self.count

    @cached_property
    def tensors(self) -> dict[str, Tensor]:
        """The same memory as tensors, for the thread and the stream that first ask."""
        return {name: from_dlpack(image.as_tensor()) for name, image in self.images.items()}

    def of(self, place: int) -> dict[str, Any]:
        """Those of one step of the group, counted from 0."""
        samples = slice(place * self.count, (place + 1) * self.count)
        return {name: tensor[samples] for name, tensor in self.tensors.items()}


class DaliLoader(Loader[tuple[Batch, Windows, int]]):
    """Windows assembled by DALI.

    Args:
        config: the recipe.
        hr: uint8 [H, W, 3] pictures, or picture files.
        sr: their centroids, or None for objectives that need none.
        start: first step.
        device: where the batches are made: "cpu", "cuda" or "cuda:N".
        rank: which part of each global batch to load, 0..world - 1.
        world: number of parts.
    """

    def __init__(
        self,
        config: Config,
        hr: Pictures,
        sr: Pictures | None,
        start: int = 0,
        *,
        device: str = "cpu",
        rank: int = 0,
        world: int = 1,
    ) -> None:
        planner = Planner(config, _sizes(hr), rank, world)
        super().__init__(planner, start, ahead=1, group=_group(planner, hr))  # DALI keeps more
        self._pictures = {"hr": hr} if sr is None else {"hr": hr, "sr": sr}
        self._device = device
        self._streams: dict[tuple[str, ...], _Stream] = {}

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, traceback)
        for stream in self._streams.values():
            stream.close()

    def _make(self, step: int) -> tuple[Batch, Windows, int]:
        mix = self.planner.mix(step)
        wanted = {"hr": mix.reads_hr, "sr": mix.reads_sr}
        names = tuple(name for name in self._pictures if wanted[name])
        if names not in self._streams:
            pictures = {name: self._pictures[name] for name in names}
            self._streams[names] = _Stream(self.planner, pictures, step, self._device, self.group)
        return self.planner.batch(step, hr=None, sr=None), *self._streams[names].take(step)

    def _hand_over(self, made: tuple[Batch, Windows, int]) -> Batch:
        batch, windows, place = made
        return replace(batch, **windows.of(place))


class _Stream:
    """The windows of one kind of step, step after step.

    Args:
        planner: which windows.
        pictures: where from, under the names of their windows.
        first: the first step that reads them.
        device: see `DaliLoader`.
        group: steps that are read together.
    """

    def __init__(self, planner: Planner, pictures: Kinds, first: int, device: str, group: int) -> None:
        self._planner, self._pictures, self._first, self._group = planner, pictures, first, group
        self._last = planner.config.train.steps
        self._device = torch.device(device)
        encoded = any(isinstance(one, EncodedImages) for one in pictures.values())
        # numpy turns windows on their way at a third of the price of DALI's transposition on a CPU
        self._cuts_turned = self._device.type == "cpu" and not encoded and planner.config.data.downsample != "dali"
        self._error: Exception | None = None
        self._next = first
        self._windows: Windows | None = None
        depth = -(-planner.config.data.prefetch // group)
        self._pipeline = self._build(pictures, self._inputs, group * planner.count, max(depth, 1))

    def take(self, step: int) -> tuple[Windows, int]:
        """The windows of the next step of this kind, by name, and their LR images where the graph makes them.

        Returns:
            Those of its group, and its place there.
        """
        assert step == self._next, "steps of one kind are one stretch"  # noqa: S101
        self._next += 1
        place = (step - self._first) % self._group
        if self._windows is None or place in (0, self._windows.steps):  # a group ends early before a broken picture
            self._windows = self._run(step)
        return self._windows, place

    def _run(self, step: int) -> Windows:
        """The windows of the group that begins at a step."""
        try:
            outputs: tuple[Any, ...] = self._pipeline.run()
        except StopIteration:
            assert self._error is not None  # noqa: S101 - the stream ends behind the last step alone
            raise self._error from None
        except RuntimeError as error:
            raise ValueError(self._culprit(step, error)) from error
        windows = dict(zip(self._pictures, outputs, strict=False))
        lr = zip(self._pictures, outputs[len(windows) :], strict=False)
        return Windows(windows | {f"lr_of_{name}": image for name, image in lr}, self._planner.count)

    def close(self) -> None:
        """End DALI's threads."""
        self._pipeline = None

    def _inputs(self, index: int) -> Inputs:
        step = self._first + index * self._group
        if self._error is not None or step >= self._last:
            raise StopIteration
        parts: list[Inputs] = []
        for one in range(step, min(step + self._group, self._last)):
            try:
                parts.append(self._read(self._pictures, self._planner.plan(one)))
            except Exception as error:  # noqa: BLE001 - for the consumer, after the batches that are under way
                self._error = error
                break
        if not parts:
            raise StopIteration
        return parts[0] if len(parts) == 1 else [np.concatenate(values) for values in zip(*parts, strict=True)]

    def _read(self, kinds: Kinds, plan: Plan) -> Inputs:
        orientation = np.stack([plan.flip_rows, plan.flip_columns, plan.transpose], axis=1).astype(np.int32)
        inputs = [np.zeros_like(orientation) if self._cuts_turned else orientation]
        for pictures in kinds.values():
            inputs += self._cut(pictures, plan)
        return inputs

    def _cut(self, pictures: Pictures, plan: Plan) -> Inputs:
        config, side = self._planner.config, self._planner.side
        if not isinstance(pictures, EncodedImages):
            cut = np.empty((len(plan.image), side, side, 3), dtype=np.uint8)
            cut_windows(pictures, plan, config, cut, turned=self._cuts_turned)
            return [cut]
        first = np.stack([plan.top, plan.left], axis=1) - margin_of(config.scale)
        ends = np.array([self._planner.sizes[image] for image in plan.image])
        low, high = np.maximum(first, 0), np.minimum(first + side, ends)
        files = [pictures.read(image) for image in plan.image]
        return [files, *(value.astype(np.int32) for value in (low, high - low, first - low))]

    def _build(self, kinds: Kinds, source: Callable[[int], Inputs], count: int, depth: int) -> Any:
        config, on_gpu = self._planner.config, self._device.type == "cuda"
        encoded = [isinstance(pictures, EncodedImages) for pictures in kinds.values()]
        pipeline = _graph(
            source,
            encoded=encoded,
            device="gpu" if on_gpu else "cpu",
            scale=config.scale,
            patch=config.data.patch,
            rounding=config.data.rounding if config.data.downsample == "dali" else None,
            batch_size=count,
            # decoding takes all the cores there are; the rest is little, and more threads only disturb the training
            num_threads=min(len(os.sched_getaffinity(0)), count) if any(encoded) else 1,
            device_id=self._device.index or 0 if on_gpu else None,
            prefetch_queue_depth=depth,
        )
        pipeline.build()
        return pipeline

    def _culprit(self, step: int, error: Exception) -> str:
        """Name the file that does not decode: DALI knows its bytes alone, so each file of the batch is tried."""
        plan = self._planner.plan(step)
        for name, pictures in self._pictures.items():
            if isinstance(pictures, EncodedImages):
                for sample, image in enumerate(plan.image):
                    if not self._decodes({name: pictures}, plan.part(slice(sample, sample + 1))):
                        return f"{pictures.entries[image].path}: the picture is damaged, DALI cannot decode it"
        return f"DALI stopped at step {step}: {error}"

    def _decodes(self, kinds: Kinds, alone: Plan) -> bool:
        try:
            self._build(kinds, lambda _: self._read(kinds, alone), 1, 1).run()
        except RuntimeError:
            return False
        return True


@pipeline_def(enable_conditionals=True)
def _graph(
    source: Callable[[int], Inputs], *, encoded: list[bool], device: str, scale: int, patch: int, rounding: str | None
) -> tuple[Any, ...]:
    """The windows of each kind of picture, then, with a rounding, their LR images."""
    layouts = [""]
    for is_encoded in encoded:
        layouts += ["", "", "", ""] if is_encoded else ["HWC"]
    inputs = list(fn.external_source(source, num_outputs=len(layouts), layout=layouts))
    orientation = inputs.pop(0)
    windows = []
    for is_encoded in encoded:
        if is_encoded:
            files, start, shape, offset = (inputs.pop(0) for _ in range(4))
            windows.append(_decode(files, start, shape, offset, scale * (patch + 4), device))
        else:
            window = inputs.pop(0)
            windows.append(window.gpu() if device == "gpu" else window)
    images = windows if rounding is None else windows + [_downsample(one, scale, patch, rounding) for one in windows]
    return tuple(_orient(image, orientation[0], orientation[1], orientation[2]) for image in images)


def _decode(files: Any, start: Any, shape: Any, offset: Any, side: int, device: str) -> Any:
    """Windows of encoded files: the part inside the picture is decoded, and mirrored where the window sticks out."""
    decoded = fn.decoders.image_slice(
        files, start=start, shape=shape, axes=[0, 1], device="mixed" if device == "gpu" else "cpu"
    )
    return fn.slice(decoded, start=offset, shape=[side, side], axes=[0, 1], out_of_bounds_policy="reflect")


def _orient(image: Any, rows: Any, columns: Any, swapped: Any) -> Any:
    image = fn.flip(image, vertical=rows, horizontal=columns)
    if swapped:
        image = fn.transpose(image, perm=[1, 0, 2], transpose_layout=False)
    return image


def _downsample(window: Any, scale: int, patch: int, rounding: str) -> Any:
    """D of windows with a margin; MATLAB rounds 8-bit images after the rows too."""
    side, low, high = scale * (patch + 4), margin_of(scale), scale * patch + margin_of(scale)
    if rounding == "uint8":
        rows = _round(_shrink(window, [patch, side], [low, 0], [high, side]))
        return _round(_shrink(rows, [patch, patch], [0, low], [patch, high]))
    return _round(_shrink(window, [patch, patch], [low, low], [high, high]))


def _shrink(window: Any, size: list[int], start: list[int], end: list[int]) -> Any:
    """Bicubic from `start..end` to `size`, not rounded; DALI clamps at borders, so what is around has to be there."""
    return fn.resize(
        window,
        size=size,
        roi_start=start,
        roi_end=end,
        interp_type=types.DALIInterpType.INTERP_CUBIC,
        antialias=True,
        dtype=types.DALIDataType.FLOAT,
    )


def _round(image: Any) -> Any:
    """Half up, as MATLAB: DALI's own conversion takes ties to even."""
    return fn.cast(math.floor(image + 0.5), dtype=types.DALIDataType.UINT8)


def _group(planner: Planner, pictures: Pictures) -> int:
    """Steps that go through a pipeline together; files alone, since decoding them is what takes the time."""
    if isinstance(pictures, EncodedImages):
        return 1
    return min(max(GROUP_BYTES // (planner.count * planner.side**2 * 3), 1), GROUP)


def _sizes(pictures: Pictures) -> list[tuple[int, int]]:
    if isinstance(pictures, EncodedImages):
        return [(entry.height, entry.width) for entry in pictures.entries]
    return [(image.shape[0], image.shape[1]) for image in pictures]
