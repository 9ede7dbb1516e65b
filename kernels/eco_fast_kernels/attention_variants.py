"""The kernels of attention in windows as `machine_code` compiles them, at a shift of half a window.

With tensor cores, which Triton uses from sm_80 on, and without ("exact": sm_75, and float32 that TF32 may not replace).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch

from eco_fast_kernels.crop_variants import KernelVariant
from eco_fast_kernels.fused import window_attention as forward
from eco_fast_kernels.fused import window_attention_backward as backward
from eco_fast_kernels.fused.window_tiles import TileForm, choose_form, constants_of, padded_size

HEADS = 6
SIZES = (10, 30, 16, 32, 64)
"""Channels of a head: SwinIR-small's, SwinIR's, and some of which rows begin at multiples of 16 bytes."""
TENSOR_CORES = {(8, "bf16"): SIZES, (8, "fp16"): SIZES[:2], (16, "bf16"): SIZES}
LATEST = {(8, "bf16"): (30, 32), (8, "fp16"): (30,)}
"""Of these, what sm_120 computes in another form."""
BEFORE_LATEST = (80, 86, 89, 90, 100)
EXACT = {(8, "fp16"): SIZES[:2], (8, "fp32"): SIZES[:4], (16, "fp32"): SIZES[:1]}
"""What is compiled, by window and dtype: other sizes and dtypes differ little."""
TYPES_OF_QKV = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def attention_variants() -> Iterator[KernelVariant]:
    """With tensor cores, and without."""
    for capability, cases in (((8, 0), TENSOR_CORES), ((12, 0), LATEST), ((7, 5), EXACT)):
        for (window, dtype), sizes in cases.items():
            for size in sizes:
                form = choose_form(capability, TYPES_OF_QKV[dtype], padded_size(3 * size, 1), window)
                targets = _targets(capability, size in LATEST.get((window, dtype), ()))
                for variant in _kernels(window, size, dtype, form):
                    name = variant.name + (", sm_120" if targets == (120,) else "")
                    yield replace(variant, name=name, targets=targets)
    for window in (8, 16):
        yield _sums(window)


def _targets(capability: tuple[int, int], apart: bool) -> tuple[int, ...] | None:
    """The generations that compute in the form of a capability, where sm_120's may be one apart."""
    if capability == (7, 5):  # and exact float32 on all others
        return None
    return (120,) if capability == (12, 0) else BEFORE_LATEST if apart else (*BEFORE_LATEST, 120)


def _kernels(window: int, size: int, dtype: str, form: TileForm) -> Iterator[KernelVariant]:
    name = f"window_attention {window} {size} {dtype}" + ("" if form.tensor_cores else " exact")
    split = form.rows < window**2
    yield _variant(name, forward.attend_kernel, ("qkv", "out"), window, size, dtype, form)
    arrays = ("qkv", "upstream", "gradient")
    gradients = "query gradients" if split else "gradients"
    yield _variant(f"{name}, {gradients}", backward.query_gradients_kernel, arrays, window, size, dtype, form)
    if split:
        yield _variant(f"{name}, key gradients", backward.key_gradients_kernel, arrays, window, size, dtype, form)


def _variant(
    name: str, kernel: Any, arrays: tuple[str, ...], window: int, size: int, dtype: str, form: TileForm
) -> KernelVariant:
    constants = constants_of(3 * HEADS * size, HEADS, window, window // 2, form)
    warps, stages = constants.pop("num_warps"), constants.pop("num_stages")
    sizes = dict.fromkeys(("height", "width", "windows", "run"), "i32")
    floats = dict.fromkeys(set(kernel.arg_names) - {*arrays, *sizes, *constants, "scale"}, "*fp32")
    return KernelVariant(
        name=name,
        kernel=kernel,
        types=dict.fromkeys(arrays, f"*{dtype}") | floats | sizes | {"scale": "fp32"},
        constants=constants,
        divisible=frozenset((*arrays, *floats, "height", "width")),
        warps=warps,
        stages=stages,
        values=form.rows * size,
        lowest=80 if form.tensor_cores else 75,
    )


def _sums(window: int) -> KernelVariant:
    pointers = dict.fromkeys(("partial", "gradient_of_bias", "gradient_of_table"), "*fp32")
    return KernelVariant(
        name=f"window_attention {window}, sums",
        kernel=backward.sum_gradients_kernel,
        types=pointers | {"programs": "i32"},
        constants={
            "HEADS": HEADS,
            "SIZE": SIZES[0],
            "PADDED": padded_size(3 * SIZES[0], 1),
            "SIDE": window,
            "PROGRAMS": backward.SUMMED_PROGRAMS,
            "VALUES": backward.SUMMED_VALUES,
        },
        divisible=frozenset(pointers),
        warps=4,
        values=backward.SUMMED_PROGRAMS * backward.SUMMED_VALUES,
    )
