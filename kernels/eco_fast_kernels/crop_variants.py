"""The kernels around crops as `machine_code` compiles them: all scales, roundings, dtypes and presences in use.

On a GPU every loader hands over crops that lie as `crops` says. Whole images, which `imresize` downsamples, are
contiguous and begin their rows at any byte: the variants in "any rows" are theirs.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from eco_fast_kernels.crops import ALIGNMENT, CHANNELS, padded_row
from eco_fast_kernels.downsampling import ROUNDINGS, STENCILS, Rounding, crop_side, margin_of
from eco_fast_kernels.fused import blended_loss as loss
from eco_fast_kernels.fused import cut_crops as cut
from eco_fast_kernels.fused import downsample_blend as blend
from eco_fast_kernels.reference import CHARBONNIER_EPSILON, LOSS_KINDS, LossKind

PATCH = 48  # of the recipes, in LR pixels
FLOAT_TYPES = ("fp16", "bf16", "fp32")


@dataclass(frozen=True, kw_only=True)
class KernelVariant:
    """One kernel with one set of compile-time constants, as the launcher would compile it."""

    name: str
    kernel: Any
    types: dict[str, str]
    constants: dict[str, Any]
    divisible: frozenset[str]
    """Arguments that are multiples of 16 (pointers: 16-byte aligned) at the recipes' shapes."""
    warps: int
    values: int
    """Values that a program makes in one pass over its code."""
    registers: int | None = None
    """Bound of a thread's registers."""
    targets: tuple[int, ...] | None = None
    """The generations that run it; None: all."""
    stages: int = 3
    """Of the compiler's pipelines."""
    lowest: int = 75
    """The first GPU generation that runs it."""


def crop_variants() -> Iterator[KernelVariant]:
    """The kernels that make, downsample and compare crops."""
    for scale in STENCILS:
        yield _cut_crops(scale)
    for scale in STENCILS:
        for rounding in ROUNDINGS:
            for dtype in FLOAT_TYPES:
                yield _downsample_blend(scale, rounding, dtype, has_sr=True)
            yield _downsample_blend(scale, rounding, "bf16")
            yield _downsample_blend(scale, rounding, "u8")
            yield _downsample_blend(scale, rounding, "u8", any_rows=True)
    for kind in LOSS_KINDS:
        for dtype in FLOAT_TYPES:
            for scale in STENCILS if (kind, dtype) == ("l1", "bf16") else (2,):
                yield _blended_loss(kind, dtype, scale, has_sr=True)
    yield _blended_loss("l1", "bf16", 2, has_sr=False)
    yield KernelVariant(
        name="blended_loss, sum",
        kernel=loss.sum_kernel,
        types={"partial": "*fp32", "loss": "*fp32", "finite": "*u8", "count": "i32", "numel": "i32"},
        constants={"BLOCK": loss.BLOCK_SUM},
        divisible=frozenset(("partial", "loss", "finite", "numel")),
        warps=4,
        values=loss.BLOCK_SUM,
    )


def _cut_crops(scale: int) -> KernelVariant:
    side = crop_side(scale, PATCH)
    lead, pitch = padded_row(side, margin_of(scale))
    pointers, sizes = {"pixels": "*u8", "plan": "*i64", "out": "*u8"}, {"side": side, "lead": lead, "pitch": pitch}
    return KernelVariant(
        name=f"cut_crops x{scale}",
        kernel=cut.cut_crops_kernel,
        types=pointers | dict.fromkeys(sizes, "i32"),
        constants={"BLOCK_ROWS": cut.BLOCK_ROWS, "BLOCK_BYTES": cut.BLOCK_BYTES},
        divisible=frozenset((*pointers, *_multiples_of_16(sizes))),
        warps=cut.WARPS,
        values=cut.BLOCK_ROWS * cut.BLOCK_BYTES,
    )


def _downsample_blend(
    scale: int, rounding: Rounding, dtype: str, *, has_sr: bool = False, any_rows: bool = False
) -> KernelVariant:
    """The dtype "u8" is D alone."""
    side = crop_side(scale, PATCH)
    lead, pitch = padded_row(side, margin_of(scale))
    sizes = {
        "sample_pitch": side * pitch,
        "pitch": pitch,
        "lead": lead,
        "in_width": pitch,
        "out_height": PATCH,
        "out_width": PATCH * CHANNELS,
    }
    pointers = {"hr": "*u8", "sr": "*u8", "alpha": "*fp32", "transposed": "*u8", "out": f"*{dtype}"}
    alone = dtype == "u8"
    absent = [name for name, here in (("sr", has_sr), ("alpha", not alone), ("transposed", not any_rows)) if not here]
    multiples = [] if any_rows else _multiples_of_16(sizes)
    return KernelVariant(
        name=f"{'downsample' if alone else 'downsample_blend'} x{scale} {rounding} {dtype}"
        + (", any rows" if any_rows else "" if alone else ", hr and sr" if has_sr else ", hr alone"),
        kernel=blend.downsample_blend_kernel,
        types=pointers | dict.fromkeys(sizes, "i32") | {"alpha_stride": "i32"} | dict.fromkeys(absent, "constexpr"),
        constants={
            "NORMALISE": not alone,
            **blend.kernel_constants(scale, rounding),
            **dict.fromkeys(absent),
        },
        divisible=frozenset((*pointers, *multiples)) - {"transposed", *absent},
        warps=blend.WARPS,
        values=blend.PIXELS * CHANNELS,
        registers=blend.REGISTERS,
    )


def _blended_loss(kind: LossKind, dtype: str, scale: int, *, has_sr: bool) -> KernelVariant:
    width, side, margin = scale * PATCH, crop_side(scale, PATCH), margin_of(scale)
    lead, pitch = padded_row(side, margin)
    sizes = {
        "rows": 16 * width,
        "height": width,
        "width": width * CHANNELS,
        "sample_pitch": side * pitch,
        "pitch": pitch,
        "inset": lead + margin * (pitch + CHANNELS),
    }
    pointers = {"prediction": f"*{dtype}", "hr": "*u8", "sr": "*u8", "alpha": "*fp32", "gradient_scale": "*fp32"}
    pointers |= {"gradient": f"*{dtype}", "partial": "*fp32"}
    absent = [] if has_sr else ["sr"]
    numbers = {"alpha_stride": "i32", "gradient_of_mean": "fp32"}
    return KernelVariant(
        name=f"blended_loss {kind} {dtype} x{scale}" + (", hr and sr" if has_sr else ", hr alone"),
        kernel=loss.blended_loss_kernel,
        types=pointers | dict.fromkeys(sizes, "i32") | numbers | dict.fromkeys(absent, "constexpr"),
        constants={
            "KIND": kind,
            "EPSILON": CHARBONNIER_EPSILON,
            "ROWS": loss.TILE_ROWS,
            "COLUMNS": loss.TILE_COLUMNS,
            **dict.fromkeys(absent),
        },
        divisible=frozenset((*pointers, *_multiples_of_16(sizes))) - set(absent),
        warps=4,
        values=loss.TILE_ROWS * loss.TILE_COLUMNS,
        registers=loss.REGISTERS,
    )


def _multiples_of_16(sizes: dict[str, int]) -> list[str]:
    return [name for name, size in sizes.items() if size % ALIGNMENT == 0]
