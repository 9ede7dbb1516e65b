"""Launches and bytes of some work: eager, compiled, or in Triton's interpreter; `bench.traffic` has the rule."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch._inductor import metrics
from torch._inductor.compile_fx import inductor_metrics_log
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

Work = Callable[[], object]


class Counts(NamedTuple):
    """Of one form of some work."""

    launches: int
    bytes: int


class CountEager(TorchDispatchMode):
    """Counts operators that are not views, and the bytes that they read and write."""

    FIRST_UNREAD = ("aten::copy_", "aten::fill_", "aten::zero_", "aten::zeros_like", "aten::ones_like")
    """Operators that take a place or a shape from their first argument, and no values."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        schema = func._schema  # noqa: SLF001 - says which arguments are changed
        given = {argument.name: value for argument, value in zip(schema.arguments, args, strict=False)} | kwargs
        read = _tensors(list(given.values())[schema.name in self.FIRST_UNREAD :])
        changed = [one.name for one in schema.arguments if one.alias_info and one.alias_info.is_write]
        storages = {_storage(tensor) for tensor in _tensors(given)}
        written = _tensors([given[name] for name in changed]) or [
            tensor for tensor in _tensors(result) if _storage(tensor) not in storages
        ]
        if written:  # else it is a view; an operator on lists launches once, not once per tensor, on a GPU
            self.launches += 1
            self.bytes += _distinct_bytes(read) + _distinct_bytes(written)
        return result


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _distinct_bytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of memory behind tensors: a tensor that comes twice counts once, and so does an expanded axis."""
    places = set()
    for tensor in tensors:
        axes = tuple((size, step) for size, step in zip(tensor.shape, tensor.stride(), strict=True) if step)
        places.add((tensor.data_ptr(), tensor.element_size(), axes))
    return sum(element_size * math.prod(size for size, _ in axes) for _, element_size, axes in places)


def count_eager(work: Work) -> Counts:
    """Run once and count."""
    with CountEager() as count:
        work()
    return Counts(count.launches, count.bytes)


def count_compiled(work: Work) -> Counts:
    """Compile afresh, run once and ask the compiler."""
    torch.compiler.reset()
    metrics.reset()
    inductor_metrics_log.setLevel(logging.INFO)  # the compiler counts bytes only when it is to log them
    inductor_metrics_log.propagate = False
    with torch._inductor.config.patch(force_disable_caches=True):  # noqa: SLF001 - a cached graph is not counted
        work()
    return Counts(metrics.generated_kernel_count, metrics.num_bytes_accessed)


def count_fused(work: Work) -> Counts:
    """Run once in the interpreter and count."""
    with _interpreted() as launches:
        work()
    return Counts(len(launches), sum(launch.distinct() for launch in launches))


def requested_bytes(work: Work) -> int:
    """Run once in the interpreter; every access of every thread counts."""
    with _interpreted() as launches:
        work()
    return sum(launch.requested() for launch in launches)


Addresses = dict[int, list[np.ndarray]]
"""Where elements begin, by their size in bytes. Elements of different sizes never overlap in our kernels."""


@dataclass
class Launch:
    """The addresses that one launch has read and written, as often as a thread has."""

    read: Addresses = field(default_factory=lambda: defaultdict(list))
    written: Addresses = field(default_factory=lambda: defaultdict(list))

    def requested(self) -> int:
        """Bytes, counted as often as they were asked for."""
        return sum(size * array.size for kind in (self.read, self.written) for size in kind for array in kind[size])

    def distinct(self) -> int:
        """Bytes, counted once for reading and once for writing."""
        return sum(
            size * np.unique(np.concatenate(arrays)).size
            for kind in (self.read, self.written)
            for size, arrays in kind.items()
        )


@contextmanager
def _interpreted() -> Iterator[list[Launch]]:
    """Collect what each launch of a kernel touches in Triton's interpreter."""
    launches: list[Launch] = []
    builder, grid = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, run = builder.create_masked_load, builder.create_masked_store, grid.__call__

    def keep(kind: Addresses, pointers: Any, mask: Any) -> None:
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        kind[size].append(pointers.data[mask.data.astype(bool)].astype(np.int64))  # combined masks are whole numbers

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        keep(launches[-1].read, pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        keep(launches[-1].written, pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counted_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.append(Launch())
        return run(self, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    grid.__call__ = counted_run
    try:
        yield launches
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        grid.__call__ = run
