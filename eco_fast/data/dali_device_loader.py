"""DALI on a GPU: it decodes, turns and downsamples; its crops land in the loader's own memory.

**Whose memory.** DALI takes a buffer back when Python lets go of it, and writes the next group there, on a stream of
its own that does not wait for ours. The host runs steps ahead of the GPU: kernels that are still to read a batch would
find another one. So the crops are copied, on our stream, to memory that stays (as a recorded step wants it anyway), and
a group of DALI's is kept until the copy is over. DALI calls CUDA from threads of its own: `record_cuda_graph` lets it.
"""

from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any

import torch
from eco_fast_kernels import empty_crops, margin_of, move_crops
from torch import Tensor

from eco_fast.data.batch import Batch, BatchPlan, BatchPlanner, Crops
from eco_fast.data.dali_loader import CropGroup, CropStreams, steps_together
from eco_fast.data.device_loader import DeviceLoader, Filled, PackedSamples
from eco_fast.data.sources import ImageSource


class Landing:
    """Where the crops of one kind of image stay while a step reads them.

    Args:
        memory: uint8 [N, side, side, 3], on the device.
    """

    def __init__(self, memory: Tensor) -> None:
        self.memory = memory
        self.shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]()

    def fill(self, plan: BatchPlan, views: Mapping[str, Tensor]) -> None:
        """Nothing: the crops do not come from the host."""

    def crops(self, views: Mapping[str, Tensor]) -> Tensor:  # noqa: ARG002 - see `Feed`
        """The same memory, at every step."""
        return self.memory


class HandOver:
    """Copies DALI's crops to where they stay, and keeps DALI's until that is done.

    Args:
        landings: by the names of `Crops`.
    """

    def __init__(self, landings: Mapping[str, Landing]) -> None:
        self._landings = landings
        self._kept: deque[tuple[torch.cuda.Event, CropGroup]] = deque()

    def __call__(self, group: CropGroup, place: int, copied: torch.cuda.Event) -> None:
        """Copy the crops of one step; `copied` is recorded behind that."""
        while self._kept and self._kept[0][0].query():
            self._kept.popleft()
        crops: Crops = group.at(place)
        for name, landing in self._landings.items():
            made = getattr(crops, name)
            if made is not None:  # what the step's blend ignores stays as it was, without weight
                landing.memory.copy_(made, non_blocking=True)
        copied.record()
        self._kept.append((copied, group))


class DaliDeviceLoader(DeviceLoader):
    """Batches whose crops DALI makes on a GPU.

    Args:
        planner: what the batches hold.
        sources: images by name, "hr" and "sr": those that a step reads.
        start: first step.
        device: "cuda" or "cuda:N".
    """

    def __init__(self, planner: BatchPlanner, sources: Mapping[str, ImageSource], start: int, *, device: str) -> None:
        landings = landings_of(planner, list(sources), device)
        super().__init__(planner, landings, start, device=device, steps_per_copy=1)
        hr, sr = sources.get("hr"), sources.get("sr")
        self._streams = CropStreams(planner, hr, sr, device, steps_together(planner, next(iter(sources.values()))))
        self._hand_over = HandOver(landings)
        self._groups: dict[int, tuple[CropGroup, int]] = {}

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        super().__exit__(kind, value, traceback)
        self._streams.close()

    def _prepare(self, step: int) -> Filled:
        plan, group, place = self._streams.take(step)
        self._groups[step] = group, place
        return self._fill(plan)

    def _finish(self, prepared: Filled) -> Batch[PackedSamples]:
        group, place = self._groups.pop(prepared.step)
        self._hand_over(group, place, torch.cuda.Event())
        return super()._finish(prepared)


def landings_of(planner: BatchPlanner, names: list[str], device: str) -> dict[str, Landing]:
    """Memory for the crops of some sources, and for their LR images where DALI makes them."""
    data, scale = planner.config.data, planner.config.scale
    landings: dict[str, Any] = {}
    for name in names:
        crops = empty_crops(planner.count, planner.side, margin_of(scale))
        landings[name] = Landing(move_crops(crops, device))
        if data.downsample == "dali":
            shape = (planner.count, data.patch, data.patch, 3)
            landings[f"lr_{name}"] = Landing(torch.zeros(shape, dtype=torch.uint8, device=device))
    return landings
