"""The kernels behind convolutions as `machine_code` compiles them: the recipes' networks in all dtypes.

Images are 48x48, of 64 channels (EDSR-baseline, RCAN) or 256 (EDSR).
"""

from collections.abc import Iterator
from typing import Any

import torch
from triton import JITFunction

from eco_fast_kernels.crop_variants import FLOAT_TYPES, PATCH, KernelVariant
from eco_fast_kernels.fused import channel_attention as attention
from eco_fast_kernels.fused import channel_attention_backward as attention_backward
from eco_fast_kernels.fused import epilogues

BODIES, REDUCTION = (64, 256), 16  # RCAN's hidden layer has so many times fewer channels
IMAGES = frozenset(("x", "residual", "upstream", "activation", "first", "second", "total", "branch", "out"))
"""Arguments of the dtype in question; all other tensors are float32."""
NUMBERS = frozenset(("parts", "pixels", "index", "parts_of_sums", "index_of_sums", "groups", "of_group"))


def epilogue_variants() -> Iterator[KernelVariant]:
    """The kernels of `epilogues` and `channel_attention`."""
    for channels in BODIES:
        for dtype in FLOAT_TYPES:
            yield _variant("bias_relu", epilogues.bias_relu_kernel, channels, dtype)
            yield _variant("add_residual", epilogues.add_residual_kernel, channels, dtype, absent=("factors",))
            yield _variant("add_residual, with factors", epilogues.add_residual_kernel, channels, dtype)
            yield _variant("relu_gradient", epilogues.relu_gradient_kernel, channels, dtype)
            yield _variant(
                "merge_gradients", epilogues.merge_gradients_kernel, channels, dtype, absent=("factors", "branch")
            )
            yield _variant("merge_gradients, scaled", epilogues.merge_gradients_kernel, channels, dtype)
            yield _variant("channel_sums", attention.channel_sums_kernel, channels, dtype)
            yield _variant("attend_channels", attention.attend_channels_kernel, channels, dtype)
            yield _variant("attention_sums", attention_backward.attention_sums_kernel, channels, dtype)
            yield _variant("attention_gradient", attention_backward.attention_gradient_kernel, channels, dtype)
        yield _variant("add_parts", attention.add_parts_kernel, channels, "fp32")


def _variant(
    name: str, kernel: JITFunction[Any], channels: int, dtype: str, absent: tuple[str, ...] = ()
) -> KernelVariant:
    images = torch.empty((1, channels, PATCH, PATCH), device="meta")
    tile = epilogues.constants(images)
    constants = tile | attention.small_constants(images, channels // REDUCTION) | {"FACTOR": 0.1}
    types = {one: _type(one, dtype) for one in kernel.arg_names if one not in constants and one not in absent}
    return KernelVariant(
        name=f"{name}, {channels} channels, {dtype}",
        kernel=kernel,
        types=types | dict.fromkeys(absent, "constexpr"),
        constants={one: constants[one] for one in kernel.arg_names if one in constants} | dict.fromkeys(absent),
        divisible=frozenset(one for one, kind in types.items() if kind.startswith("*")) | {"pixels"} & types.keys(),
        warps=4,
        values=tile["ROWS"] * tile["COLUMNS"],
    )


def _type(argument: str, dtype: str) -> str:
    if argument in NUMBERS:
        return "i32"
    return f"*{dtype}" if argument in IMAGES else "*fp32"
