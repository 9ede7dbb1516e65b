"""Where a GPU finds the pixels that it cuts its crops from: in its own memory, or in the blocks of the steps."""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from eco_fast_kernels import Orientation, PlanColumn, cut_crops, margin_of
from torch import Tensor

from eco_fast.data.batch import BatchPlan, BatchPlanner
from eco_fast.data.blocks import Shapes
from eco_fast.data.loader import fill_crops
from eco_fast.data.sampler import CropPlan
from eco_fast.data.sources import ImageSource, sizes_of


class Feed(Protocol):
    """What makes the crops of one kind of image, from what the host has written about them."""

    @property
    def shapes(self) -> Shapes:
        """What the host writes into each block."""

    def fill(self, plan: BatchPlan, views: Mapping[str, Tensor]) -> None:
        """Write it, on the host: into views of a block by the names of `shapes`."""

    def crops(self, views: Mapping[str, Tensor]) -> Tensor:
        """uint8 [N, side, side, 3], on the device: from views of a block there."""


class ResidentImages:
    """All images of a source, in the device's memory.

    Args:
        name: of the source, "hr" or "sr".
        source: decoded images.
        planner: what the batches hold.
        device: where to.
    """

    def __init__(self, name: str, source: ImageSource, planner: BatchPlanner, device: str) -> None:
        self._plan = f"{name}_plan"
        self.shapes: Shapes = {self._plan: ((planner.count, len(PlanColumn)), torch.int64)}
        self._side, self._margin = planner.side, margin_of(planner.config.scale)
        sizes = sizes_of(source)
        bytes_of = sizes.prod(axis=1) * 3
        offsets = np.cumsum(bytes_of) - bytes_of
        self._images = np.zeros((len(sizes), len(PlanColumn)), dtype=np.int64)
        self._images[:, PlanColumn.OFFSET] = offsets
        self._images[:, PlanColumn.ROW_BYTES] = sizes[:, 1] * 3
        self._images[:, [PlanColumn.HEIGHT, PlanColumn.WIDTH]] = planner.sizes
        self._pixels = torch.empty(int(bytes_of.sum()), dtype=torch.uint8, device=device)
        staging = torch.empty(int(bytes_of.max()), dtype=torch.uint8, pin_memory=self._pixels.is_cuda)
        for index, (first, size) in enumerate(zip(offsets.tolist(), bytes_of.tolist(), strict=True)):
            staging.numpy()[:size] = source.read(index).reshape(-1)
            self._pixels[first : first + size].copy_(staging[:size])

    def fill(self, plan: BatchPlan, views: Mapping[str, Tensor]) -> None:
        """Where in which image each crop lies."""
        cut, rows = plan.crops, views[self._plan].numpy()
        rows[:] = self._images[cut.image]
        rows[:, PlanColumn.TOP] = cut.top - self._margin
        rows[:, PlanColumn.LEFT] = cut.left - self._margin
        rows[:, PlanColumn.ORIENTATION] = orientations(cut)

    def crops(self, views: Mapping[str, Tensor]) -> Tensor:
        """See `Feed`."""
        return cut_crops(self._pixels, views[self._plan], self._side, self._margin)


class StagedCrops:
    """Crops that the host cuts and sends with the block.

    Args:
        name: of the source, "hr" or "sr".
        source: decoded images.
        planner: what the batches hold.
    """

    def __init__(self, name: str, source: ImageSource, planner: BatchPlanner) -> None:
        self._name, self._source, self._config = name, source, planner.config
        self._plan, count, side = f"{name}_plan", planner.count, planner.side
        self._side, self._margin = side, margin_of(planner.config.scale)
        self.shapes: Shapes = {
            self._plan: ((count, len(PlanColumn)), torch.int64),
            name: ((count, side, side, 3), torch.uint8),
        }
        self._rows = np.zeros((count, len(PlanColumn)), dtype=np.int64)
        self._rows[:, PlanColumn.OFFSET] = np.arange(count) * side * side * 3
        self._rows[:, PlanColumn.ROW_BYTES] = side * 3
        self._rows[:, [PlanColumn.HEIGHT, PlanColumn.WIDTH]] = side

    def fill(self, plan: BatchPlan, views: Mapping[str, Tensor]) -> None:
        """The crops as they lie in their images, with their margins; and how they are to be turned.

        Where the step's blend ignores them, old ones stay: they have no weight.
        """
        rows = views[self._plan].numpy()
        rows[:] = self._rows
        rows[:, PlanColumn.ORIENTATION] = orientations(plan.crops)
        if plan.weights.reads_hr if self._name == "hr" else plan.weights.reads_sr:
            out = views[self._name].numpy()
            fill_crops(self._source, plan.crops, self._config.scale, self._config.data.patch, out, turned=False)

    def crops(self, views: Mapping[str, Tensor]) -> Tensor:
        """See `Feed`."""
        return cut_crops(views[self._name].view(-1), views[self._plan], self._side, self._margin)


def orientations(plan: CropPlan) -> npt.NDArray[np.int64]:
    """What is done to each crop, int64 [N], as `cut_crops` reads it."""
    turned: npt.NDArray[np.int64] = np.where(plan.flip_rows, Orientation.FLIP_ROWS.value, 0)
    turned |= np.where(plan.flip_columns, Orientation.FLIP_COLUMNS.value, 0)
    return turned | np.where(plan.transpose, Orientation.TRANSPOSE.value, 0)
