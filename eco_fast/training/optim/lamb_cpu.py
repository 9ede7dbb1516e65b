"""The `torch` backend of LAMB: tensors of one shape in one buffer, worked through in blocks that stay in cache.

A loop over RCAN's 1 628 tensors goes through memory again with each of its ten operators. Here the weights and moments
of all tensors of one shape and memory layout lie in one buffer each, [tensors, numel], of which parameters and state
are views. A block is as many rows as fit into `BLOCK_BYTES`:

    1. gather the gradients of blocks of small tensors: biases and the like, where a call costs more than its bytes
    2. is a gradient not finite? (the check of torch's gradient scalers, with a factor of 1)
    3. for each block, the last first: gather its gradients, if they are large, into a scratch that all blocks share;
       moments, and the update u in place of the gradients (one fused loop); norms of each row; p -= rate * u

Memory moves 28 bytes a weight for the update and 8 for the question that must be answered before it; the scratch and
what step 3 reads twice stay in the cache, and so do the gradients that step 2 has read last.
"""

import math
import mmap
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from eco_fast_kernels.checks import is_dense
from torch import Tensor
from torch.nn import Parameter

from eco_fast.config import Optimizer
from eco_fast.training.precision import multiply_gradients
from eco_fast.utils.device import why_not_compile

BLOCK_BYTES = 4 << 20  # of each of a block's four arrays: they share the last cache, and calls are few
SMALL = 4096  # weights, below which a tensor is small
LARGE_PAGE = 2 << 20
NORM_CLAMP = 10.0  # the authors' bound of a weight's norm


@dataclass
class _Block:
    """Rows of the buffers of one shape; `rows` is [tensors, numel], `flat` the same memory in one dimension."""

    places: list[int]  # of its tensors among all that were taken
    weights: Tensor  # rows
    exp_avg: Tensor  # flat
    exp_avg_sq: Tensor  # flat
    average: Tensor | None  # flat
    update: Tensor  # rows of the scratch, or of memory of its own if they are small
    gradients: Tensor  # the same memory, as `gather` writes it
    gather: Callable[..., Tensor]

    @property
    def is_small(self) -> bool:
        """Whether its gradients are gathered before they are checked."""
        return self.weights.shape[1] < SMALL

    def collect(self, gradients: list[Tensor]) -> None:
        """Gather its part of all gradients."""
        self.gather([gradients[place] for place in self.places], out=self.gradients)


class Blocks:
    """The buffers that parameters and state are views of, and the step on them.

    Everything that may differ between steps or recipes is a tensor, so that one compiled function serves all.
    """

    def __init__(self, config: Optimizer, average_decay: float, device: torch.device, *, compiled: bool) -> None:
        betas = [value for beta in config.betas for value in (beta, 1 - beta)]
        others = [config.epsilon, config.weight_decay, config.clip_value or math.inf]
        self.constants = torch.tensor([*betas, *others], device=device)
        self.follow_rate = torch.tensor(1 - average_decay, device=device)
        self.one = torch.ones((), device=device)
        self.find_update, self.move, self.follow = _find_update, _move, _follow
        if compiled and why_not_compile(str(device)) is None:  # where it cannot be, the trainer has said so
            # Otherwise the compiler decides about threads by the size of the block that it happens to see first.
            options: dict[str, Any] = {"cpp.dynamic_threads": True}
            self.find_update, self.move, self.follow = (
                torch.compile(function, fullgraph=True, dynamic=True, options=options)
                for function in (_find_update, _move, _follow)
            )
        self.release()

    def release(self) -> None:
        """Forget which tensors are views."""
        self.addresses: list[int] = []
        self.blocks: list[_Block] = []

    def hold(self, parameters: list[Parameter]) -> bool:
        """Whether these are the parameters that were taken last, where they were put."""
        return list(map(Tensor.data_ptr, parameters)) == self.addresses

    def take(
        self, parameters: list[Parameter], state: dict[Tensor, dict[str, Tensor]], averages: dict[Parameter, Tensor]
    ) -> None:
        """Make parameters, state and averages views of one buffer per shape and layout."""
        groups: dict[tuple[object, ...], list[int]] = {}
        for place, parameter in enumerate(parameters):
            if parameter.dtype != torch.float32 or not is_dense(parameter):
                raise ValueError(
                    f"optimizer: LAMB needs dense float32 weights, got {parameter.dtype}, shape "
                    f"{tuple(parameter.shape)}, strides {parameter.stride()}"
                )
            groups.setdefault((parameter.shape, parameter.stride()), []).append(place)
        places_of_each = list(groups.values())
        sizes = [max(parameters[places[0]].numel(), 1) for places in places_of_each]
        counts = [max(1, BLOCK_BYTES // 4 // size) for size in sizes]
        largest = max(min(most, len(places)) * n for most, places, n in zip(counts, places_of_each, sizes, strict=True))
        scratch = _memory(largest, parameters[0].device)
        self.release()
        for places, most in zip(places_of_each, counts, strict=True):
            members = [parameters[place] for place in places]
            columns: dict[str, list[Tensor]] = {
                "weights": [parameter.data for parameter in members],
                "exp_avg": [state[parameter]["exp_avg"] for parameter in members],
                "exp_avg_sq": [state[parameter]["exp_avg_sq"] for parameter in members],
            }
            if averages:
                columns["average"] = [averages[parameter] for parameter in members]
            buffers = {name: _stacked(tensors, members[0]) for name, tensors in columns.items()}
            for index, parameter in enumerate(members):
                views = {
                    name: buffer[index].as_strided(parameter.shape, parameter.stride())
                    for name, buffer in buffers.items()
                }
                if averages:
                    averages[parameter].data = views["average"]
                state[parameter].update(exp_avg=views["exp_avg"], exp_avg_sq=views["exp_avg_sq"])
                parameter.data = views["weights"]
            count = -(-len(members) // -(-len(members) // most))  # blocks of equal size
            for first in range(0, len(members), count):
                rows = slice(first, first + count)
                part = {name: buffer[rows] for name, buffer in buffers.items()}
                self.blocks.append(_block(places[rows], members[0], part, scratch))
        self.addresses = [parameter.data_ptr() for parameter in parameters]

    def step(self, gradients: list[Tensor], learning_rate: Tensor, skip: Tensor, inverse_scale: Tensor | None) -> None:
        """One update of what was taken, given its gradients in that order."""
        scale = self.one if inverse_scale is None else inverse_scale
        to_check: list[Tensor] = []
        for block in self.blocks:
            if block.is_small:
                block.collect(gradients)
                to_check.append(block.update)
            else:
                to_check += [gradients[place] for place in block.places]
        multiply_gradients(to_check, self.one, skip)  # leaves them as they are: the scale comes with the moments
        for block in reversed(self.blocks):
            if not block.is_small:
                block.collect(gradients)
            self._update(block, learning_rate, scale, skip)

    def _update(self, block: _Block, learning_rate: Tensor, scale: Tensor, skip: Tensor) -> None:
        update = block.update.view(-1)
        self.find_update(block.weights.view(-1), update, block.exp_avg, block.exp_avg_sq, self.constants, scale, skip)
        weight_norm, update_norm = (
            torch.linalg.vector_norm(rows, dim=1, keepdim=True) for rows in (block.weights, block.update)
        )
        self.move(block.weights, block.update, weight_norm, update_norm, learning_rate)
        if block.average is not None:
            self.follow(block.average, block.weights.view(-1), self.follow_rate, skip)


def _memory(size: int, device: torch.device) -> Tensor:
    """Uninitialised float32 [size]; on the CPU in large pages, where Linux has them: they are read faster."""
    if device.type != "cpu" or not hasattr(mmap, "MADV_HUGEPAGE") or 4 * size < LARGE_PAGE:
        return torch.empty(size, device=device)
    pages = mmap.mmap(-1, -(-4 * size // LARGE_PAGE) * LARGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with suppress(OSError):  # a kernel without them
        pages.madvise(mmap.MADV_HUGEPAGE)
    return torch.frombuffer(pages, dtype=torch.float32, count=size)


def _stacked(tensors: list[Tensor], like: Tensor) -> Tensor:
    """[tensors, numel], each row in the memory order of `like`."""
    buffer = _memory(len(tensors) * like.numel(), like.device).view(len(tensors), like.numel())
    for row, tensor in zip(buffer, tensors, strict=True):
        row.as_strided(like.shape, like.stride()).copy_(tensor)
    return buffer


def _block(places: list[int], like: Tensor, buffers: dict[str, Tensor], scratch: Tensor) -> _Block:
    weights = buffers["weights"]
    shape, strides = like.shape, like.stride()
    rows, numel = weights.shape
    if numel < SMALL:
        scratch = torch.empty(weights.numel(), device=weights.device)
    gather: Callable[..., Tensor]
    # Concatenated tensors are the rows one after the other, if their first axis is the outermost in memory. torch does
    # this at the speed of memory; the general way is slower.
    if shape and strides[0] * shape[0] == numel:
        gradients, gather = scratch.as_strided((rows * shape[0], *shape[1:]), strides), torch.cat
    else:
        gradients, gather = scratch.as_strided((rows, *shape), (numel, *strides)), torch.stack
    return _Block(
        places,
        weights,
        buffers["exp_avg"].view(-1),
        buffers["exp_avg_sq"].view(-1),
        buffers["average"].view(-1) if "average" in buffers else None,
        scratch[: weights.numel()].view_as(weights),
        gradients,
        gather,
    )


def _find_update(
    p: Tensor, g: Tensor, m: Tensor, v: Tensor, constants: Tensor, inverse_scale: Tensor, skip: Tensor
) -> None:
    """Moments in place; the update in place of the gradients, 0 where the step is skipped: p - 0 is p to the bit."""
    beta1, one_minus_beta1, beta2, one_minus_beta2, epsilon, weight_decay, bound = constants.unbind()
    clipped = (g * inverse_scale).clamp(-bound, bound)
    first = torch.where(skip, m, m * beta1 + clipped * one_minus_beta1)
    second = torch.where(skip, v, v * beta2 + clipped * clipped * one_minus_beta2)
    m.copy_(first)
    v.copy_(second)
    g.copy_(torch.where(skip, 0.0, first / (second.sqrt() + epsilon) + weight_decay * p))


def _move(p: Tensor, update: Tensor, weight_norm: Tensor, update_norm: Tensor, learning_rate: Tensor) -> None:
    trust = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm.clamp(max=NORM_CLAMP) / update_norm, 1.0)
    p.addcmul_(update, trust * learning_rate, value=-1)


def _follow(average: Tensor, p: Tensor, rate: Tensor, skip: Tensor) -> None:
    average.copy_(torch.where(skip, average, average + rate * (p - average)))
