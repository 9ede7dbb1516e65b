"""What the host tells a GPU about a step, as one block of bytes: the blocks of several steps travel in one copy.

    | counter | block of step 0 | block of step 1 | ...      a group, on the host and on the device

A block holds the step's conditions, where its crops lie, and the crops themselves where the device does not have the
images. The device counts the steps of a group itself: a step, recorded once, finds its block without the host.
"""

import math
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from eco_fast.data.batch import BatchPlanner

FIELD_ALIGNMENT = 16  # bytes, of every field
COUNTER_BYTES = 16


class Field(NamedTuple):
    """Where one array lies in a block."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """In bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def of(self, block: Tensor) -> Tensor:
        """The array, as a view of a block, uint8 [bytes]."""
        return block[self.offset : self.offset + self.size].view(self.dtype).view(self.shape)


Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype]]
"""Arrays by name."""


def condition_shapes(planner: BatchPlanner) -> Shapes:
    """Those of `Conditions` that a recipe has."""
    config, count = planner.config, planner.count
    patch, branches = config.data.patch, config.model.drop_path_branches
    weights = (count,) if config.objective.alpha_sample else ()
    shapes: dict[str, tuple[tuple[int, ...], torch.dtype]] = {
        "transposed": ((count,), torch.bool),
        "input_alpha": (weights, torch.float32),
        "target_alpha": (weights, torch.float32),
        "learning_rate": ((), torch.float32),
    }
    if config.data.noise_sigma:
        shapes["noise"] = ((count, 3, patch, patch), torch.float32)
    if branches:
        shapes["drop_path_uniforms"] = ((count, branches), torch.float32)
    return shapes


class BlockLayout:
    """The fields of a block.

    Args:
        shapes: what is in it.

    Attributes:
        size: bytes of a block.
    """

    def __init__(self, shapes: Shapes) -> None:
        self._fields: dict[str, Field] = {}
        self.size = 0
        for name, (shape, dtype) in shapes.items():
            field = self._fields[name] = Field(self.size, shape, dtype)
            self.size += -(-field.size // FIELD_ALIGNMENT) * FIELD_ALIGNMENT

    def views(self, block: Tensor) -> Mapping[str, Tensor]:
        """Every field of a block, uint8 [size]."""
        return {name: field.of(block) for name, field in self._fields.items()}


class BlockGroup(NamedTuple):
    """The blocks of several steps, and which of them is next; one memory."""

    memory: Tensor
    """uint8 [bytes]."""
    counter: Tensor
    """int64 [1]: the place of the next step's block."""
    blocks: Tensor
    """uint8 [steps, bytes of a block]."""

    @classmethod
    def of(cls, layout: BlockLayout, steps: int, device: str, *, pinned: bool = False) -> "BlockGroup":
        """Zeros, on a device."""
        memory = torch.zeros(COUNTER_BYTES + steps * layout.size, dtype=torch.uint8, device=device, pin_memory=pinned)
        return cls(memory, memory[:8].view(torch.int64), memory[COUNTER_BYTES:].view(steps, layout.size))
