"""The loader of a GPU: the plain loader's batches, byte for byte, assembled where the training runs.

    plan --block--> device: images in its memory, or crops in the block --cut_crops--> crops as the kernels read them

The host plans, and cuts crops only where the images do not fit into the GPU's memory. A thread fills pinned memory for
a group of steps, which goes to the device in one copy. All that follows is part of the step itself and at addresses
that stay what they are: `PackedSamples.to` may be recorded in a CUDA graph.
"""

from collections.abc import Mapping
from typing import NamedTuple

import torch

from eco_fast.data.batch import Batch, BatchPlan, BatchPlanner, Samples
from eco_fast.data.blocks import BlockGroup, BlockLayout, condition_shapes
from eco_fast.data.feeds import Feed
from eco_fast.data.loader import Loader

GROUP_BYTES = 4 << 20  # of blocks that travel together, at most
GROUP_STEPS = 128


class PackedSamples:
    """The samples of the device's next step, in blocks that lie there.

    Args:
        layout: of a block.
        group: the blocks.
        feeds: what makes the crops, by the names that they have in `Samples`.
    """

    def __init__(self, layout: BlockLayout, group: BlockGroup, feeds: Mapping[str, Feed]) -> None:
        self._layout, self._group, self._feeds = layout, group, feeds

    def to(self, device: str) -> Samples:
        """The samples, from the next block; goes on to the one behind it."""
        block = self._group.blocks.index_select(0, self._group.counter)[0]
        assert block.device.type == torch.device(device).type, "a training runs where its loader is"
        self._group.counter.add_(1)
        views = self._layout.views(block)
        made = {**views} | {name: feed.crops(views) for name, feed in self._feeds.items()}
        return Samples._make(made.get(name) for name in Samples._fields)


class Filled(NamedTuple):
    """A step whose block is filled, on the host."""

    step: int
    place: int
    """Of its block in the group."""
    group: BlockGroup
    copied: torch.cuda.Event | None
    """Passes when the group has been copied to the device; None where a copy is over when it returns."""


class DeviceLoader(Loader[Filled]):
    """Batches that a device makes from plans.

    Args:
        planner: what the batches hold.
        feeds: what makes the crops, by the names that they have in `Samples`.
        start: first step.
        device: where the training runs.
        steps_per_copy: blocks that travel together; None: as many as is sensible.
    """

    def __init__(
        self,
        planner: BatchPlanner,
        feeds: Mapping[str, Feed],
        start: int,
        *,
        device: str,
        steps_per_copy: int | None = None,
    ) -> None:
        shapes = dict(condition_shapes(planner))
        for feed in feeds.values():
            shapes |= feed.shapes
        self._layout = BlockLayout(shapes)
        prefetch = planner.config.data.prefetch
        together = max(min(GROUP_BYTES // self._layout.size, GROUP_STEPS), 1) if prefetch else 1
        steps = steps_per_copy or together
        super().__init__(planner, start, prefetch=max(prefetch, 1), steps_per_fetch=steps)
        self._feeds, self._start = feeds, start
        on_gpu = torch.device(device).type == "cuda"
        # one group is being filled, some wait, and one may still be on its way to the device
        self._hosts = [
            (
                BlockGroup.of(self._layout, steps, "cpu", pinned=on_gpu),
                torch.cuda.Event() if on_gpu else None,  # type: ignore[no-untyped-call]
            )
            for _ in range(max(prefetch, 1) + 2)
        ]
        self._on_device = BlockGroup.of(self._layout, steps, device)
        self._samples = PackedSamples(self._layout, self._on_device, feeds)

    def _prepare(self, step: int) -> Filled:
        return self._fill(self.planner.plan(step))

    def _fill(self, plan: BatchPlan) -> Filled:
        """Write a step's block, on the host, once the copy that read its memory last is over."""
        number, place = divmod(plan.step - self._start, self.steps_per_fetch)
        group, copied = self._hosts[number % len(self._hosts)]
        if place == 0 and copied is not None:
            copied.synchronize()
        views = self._layout.views(group.blocks[place])
        for name, value in self.planner.conditions(plan)._asdict().items():
            if value is not None:
                views[name].copy_(value)
        for feed in self._feeds.values():
            feed.fill(plan, views)
        return Filled(plan.step, place, group, copied)

    def _finish(self, prepared: Filled) -> Batch[PackedSamples]:
        if prepared.place == 0:
            self._on_device.memory.copy_(prepared.group.memory, non_blocking=True)
            if prepared.copied is not None:
                prepared.copied.record()
        return Batch(prepared.step, self._samples)
