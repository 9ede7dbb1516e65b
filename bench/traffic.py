"""Count kernel launches and bytes of the eager, the compiled and the fused form of the same work; needs no GPU.

    python -m bench.traffic

eager      every torch operator that is not a view is a launch that reads its tensors and writes its results
compiled   the kernels that torch.compile generates, and the bytes that its scheduler says they access (on the CPU: its
           fusion decides by the same rules there)
fused      launches of our kernels, and the bytes that each reads or writes in Triton's interpreter, counted once

The work is what one step does around the network: the blended input, the loss with its gradient, and LAMB.
"""

import logging
import os

os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from eco_fast_kernels import crop_side, empty_crops, margin_of, reference
from eco_fast_kernels.fused import blended_loss, downsample_blend, lamb_step
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._inductor import metrics
from torch._inductor.compile_fx import inductor_metrics_log
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime import interpreter

from bench.plain import lamb_parameters, lamb_per_tensor, rcan_shapes

SAMPLES, PATCH, SCALE = 2, 12, 2  # the interpreter is slow; the ratios hardly depend on the size
Counts = tuple[int, int]
"""Launches and bytes."""


class CountEager(TorchDispatchMode):
    """Counts operators that are not views, and the bytes of their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        storages = {leaf.untyped_storage()._cdata for leaf in inputs}  # noqa: SLF001 - a storage's identity
        written = [leaf for leaf in outputs if leaf.untyped_storage()._cdata not in storages]  # noqa: SLF001
        if written or func._schema.is_mutable:  # noqa: SLF001 - otherwise a view
            # An operator on lists launches once per operator and list, not per tensor, on a GPU.
            self.launches += 1
            tensors = inputs + (written or outputs or inputs[:1])
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


def count_eager(work: Callable[[], object]) -> Counts:
    """Run once and count."""
    with CountEager() as count:
        work()
    return count.launches, count.bytes


def count_compiled(work: Callable[[], object]) -> Counts:
    """Compile afresh, run once and ask the compiler."""
    torch.compiler.reset()
    metrics.reset()
    inductor_metrics_log.setLevel(logging.INFO)  # the compiler counts bytes only when it is to log them
    inductor_metrics_log.propagate = False
    with torch._inductor.config.patch(force_disable_caches=True):  # noqa: SLF001 - a cached graph is not counted
        work()
    return metrics.generated_kernel_count, metrics.num_bytes_accessed


def count_fused(work: Callable[[], object]) -> Counts:
    """Run once in the interpreter and count."""
    with _counting() as counts:
        work()
    return len(counts), sum(len(np.unique(np.concatenate(addresses))) for addresses in counts)


@contextmanager
def _counting() -> Iterator[list[list[np.ndarray]]]:
    """Collect the byte addresses that each launch touches."""
    launches: list[list[np.ndarray]] = []
    builder, grid = interpreter.InterpreterBuilder, interpreter.GridExecutor
    load, store, run = builder.create_masked_load, builder.create_masked_store, grid.__call__

    def touched(pointers: Any, mask: Any) -> None:
        size = max(pointers.get_element_ty().primitive_bitwidth // 8, 1)
        addresses = pointers.data[mask.data].reshape(-1, 1).astype(np.int64) + np.arange(size)
        launches[-1].append(addresses.reshape(-1))

    def counted_load(self: Any, pointers: Any, mask: Any, *rest: Any) -> Any:
        touched(pointers, mask)
        return load(self, pointers, mask, *rest)

    def counted_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        touched(pointers, mask)
        return store(self, pointers, value, mask, *rest)

    def counted_run(self: Any, *args: Any, **kwargs: Any) -> Any:
        launches.append([np.empty(0, np.int64)])
        return run(self, *args, **kwargs)

    builder.create_masked_load, builder.create_masked_store = counted_load, counted_store
    grid.__call__ = counted_run
    try:
        yield launches
    finally:
        builder.create_masked_load, builder.create_masked_store = load, store
        grid.__call__ = run


def measure() -> dict[str, dict[str, Counts]]:
    """Counts by work and form."""
    torch.manual_seed(0)
    margin = margin_of(SCALE)
    hr, sr = (empty_crops(SAMPLES, crop_side(SCALE, PATCH), margin).random_(0, 256) for _ in range(2))
    alpha, one = torch.tensor(0.3), torch.tensor(1.0)
    prediction = torch.rand(SAMPLES, 3, SCALE * PATCH, SCALE * PATCH, dtype=torch.bfloat16)
    prediction = prediction.contiguous(memory_format=torch.channels_last).requires_grad_()

    def blend() -> Tensor:
        return reference.downsample_blend(hr, sr, alpha, SCALE, dtype=torch.bfloat16)

    def loss() -> Tensor:
        return reference.blended_loss(prediction, hr, sr, alpha, "l1", margin=margin)

    compiled_blend = torch.compile(blend, dynamic=False)
    compiled_loss = torch.compile(loss, dynamic=False)
    work = {
        "downsample_blend x2, bf16": {
            "eager": count_eager(blend),
            "compiled": count_compiled(compiled_blend),
            "fused": count_fused(lambda: downsample_blend.launch(hr, sr, alpha, SCALE, "uint8", None, torch.bfloat16)),
        },
        "blended_loss l1 with gradient, bf16": {
            "eager": count_eager(lambda: loss().backward()),
            "compiled": count_compiled(lambda: compiled_loss().backward()),
            "fused": count_fused(lambda: blended_loss.launch(prediction.detach(), hr, sr, alpha, "l1", margin, one)),
        },
    }
    return work | {"lamb_step on RCAN's 1 628 tensors (launches)": lamb_launches()}


def lamb_launches() -> dict[str, Counts]:
    """Launches of one LAMB update of RCAN's parameters: a loop over the tensors, and ours (bytes by contract)."""
    shapes = rcan_shapes()
    weights = sum(int(np.prod(shape)) for shape in shapes)
    parameters, state = lamb_parameters("cpu")

    launches = 0

    class Counted:
        def __getitem__(self, grid: object) -> Callable[..., None]:
            def launch(*_: object, **__: object) -> None:
                nonlocal launches
                launches += 1

            return launch

    names = ("find_nonfinite_kernel", "decide_skip_kernel", "moments_kernel", "update_kernel")
    kernels = {name: getattr(lamb_step, name) for name in names}
    p, g, m, v = ([torch.zeros(1) for _ in shapes] for _ in range(4))
    try:
        for name in names:
            setattr(lamb_step, name, Counted())
        lamb_step.launch(
            p, g, m, v, [], learning_rate=torch.tensor(0.1), skip=torch.tensor(False), step_count=torch.tensor(0),
            inverse_scale=torch.tensor(1.0), betas=(0.9, 0.99), epsilon=1e-6, weight_decay=0.0, norm_clamp=10.0,
            clip_value=0.1, average_decay=0.0,
        )  # fmt: skip
    finally:
        for name, kernel in kernels.items():
            setattr(lamb_step, name, kernel)
    return {
        "eager": count_eager(torch.no_grad()(lambda: lamb_per_tensor(parameters, state))),
        "fused": (launches, 44 * weights),
    }


def main() -> None:
    """Print the table."""
    table = Table("work", "form", "launches", "bytes", "launches / fused", "bytes / fused")
    for name, forms in measure().items():
        launches, moved = forms["fused"]
        for form, counts in forms.items():
            row = [f"{counts[0]}", f"{counts[1]}", f"{counts[0] / launches:.1f}", f"{counts[1] / moved:.2f}"]
            table.add_row(name, form, *row)
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
