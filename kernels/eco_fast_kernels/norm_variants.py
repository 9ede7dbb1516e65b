"""The kernels around linear layers as `machine_code` compiles them: the widths of SwinIR-small and of SwinIR.

The stream is float32, as under autocast, unless the name says that everything has one dtype.
"""

from collections.abc import Iterable, Iterator

from eco_fast_kernels.crop_variants import FLOAT_TYPES, PATCH, KernelVariant
from eco_fast_kernels.fused import add_norm as norm
from eco_fast_kernels.fused import bias_gelu as gelu
from eco_fast_kernels.fused import column_sums
from eco_fast_kernels.normalisation import MOST_CHANNELS

NORMALISED, HIDDEN = (60, 180), (120, 360)
SIZES = {"rows": "i32", "pixels": "i32"}  # 16 * PATCH**2 and PATCH**2: multiples of 16


def norm_variants() -> Iterator[KernelVariant]:
    """The kernels of `add_norm`, `bias_gelu` and the end of their column sums."""
    assert PATCH**2 % 16 == 0
    for channels in NORMALISED:
        for dtype in FLOAT_TYPES:
            yield from _add_norm(channels, dtype, "fp32", ", factors", ())
        yield from _add_norm(channels, "bf16", "fp32", "", ("factors",))
        yield from _add_norm(channels, "bf16", "bf16", " throughout", ("factors", "of_branch"))
        alone = ("branch", "branch_bias", "factors", "total", "of_total", "of_branch")
        yield from _add_norm(channels, "bf16", "fp32", ", no branch", alone)
    for channels in HIDDEN:
        for dtype in FLOAT_TYPES:
            yield from _bias_gelu(channels, dtype)
    for channels in (*NORMALISED, *HIDDEN):
        yield KernelVariant(
            name=f"column_sums {channels}",
            kernel=column_sums.column_sums_kernel,
            types=dict.fromkeys(("partial", "first", "second"), "*fp32") | {"third": "*bf16", "parts": "i32"},
            constants={"C": channels, "PARTS": column_sums.BLOCK_PARTS, "COLUMNS": column_sums.BLOCK_COLUMNS},
            divisible=frozenset(("partial", "first", "second", "third")),
            warps=4,
            values=column_sums.BLOCK_PARTS * column_sums.BLOCK_COLUMNS,
        )


def _add_norm(channels: int, dtype: str, stream: str, what: str, absent: Iterable[str]) -> Iterator[KernelVariant]:
    vectors = dict.fromkeys(("branch_bias", "factors", "weight", "bias", "statistics", "partial"), "*fp32")
    of_stream = dict.fromkeys(("residual", "total", "of_total", "of_stream"), f"*{stream}")
    of_branch = dict.fromkeys(("branch", "normalised", "of_normalised", "of_branch"), f"*{dtype}")
    for name, kernel, values, gone in (
        ("", norm.add_norm_kernel, norm.TILE, {*absent}),
        (" gradient", norm.add_norm_gradient_kernel, norm.GRADIENT_TILE, {*absent} - {"total"}),
    ):
        rows, padded = column_sums.tile_of(channels, values, MOST_CHANNELS)
        constants: dict[str, object] = {
            "EPS": 1e-5,
            "HAS_BRANCH": "branch" not in gone,
            "TILES": column_sums.tiles_of(rows),
        }
        constants |= {"C": channels, "ROWS": rows, "COLUMNS": padded} | dict.fromkeys(gone)
        types = vectors | of_stream | of_branch | SIZES
        given = set(types) & set(kernel.arg_names) - gone
        yield KernelVariant(
            name=f"add_norm{name} {channels} {dtype}{what}",
            kernel=kernel,
            types={argument: types[argument] for argument in given},
            constants={argument: value for argument, value in constants.items() if argument in kernel.arg_names},
            divisible=frozenset(given),
            warps=4,
            values=rows * channels,
        )


def _bias_gelu(channels: int, dtype: str) -> Iterator[KernelVariant]:
    rows, columns = column_sums.tile_of(channels, gelu.TILE, gelu.MOST_COLUMNS)
    constants = {"C": channels, "ROWS": rows, "COLUMNS": columns}
    for name, kernel, images, more in (
        ("", gelu.bias_gelu_kernel, ("x", "y"), {}),
        (" gradient", gelu.bias_gelu_gradient_kernel, ("of_y", "x", "of_x"), {"TILES": column_sums.tiles_of(rows)}),
    ):
        types = dict.fromkeys(images, f"*{dtype}") | {"bias": "*fp32", "partial": "*fp32", "rows": "i32"}
        yield KernelVariant(
            name=f"bias_gelu{name} {channels} {dtype}",
            kernel=kernel,
            types=types,
            constants={**constants, **more},
            divisible=frozenset(argument for argument in types if argument in kernel.arg_names),
            warps=4,
            values=rows * columns,
        )
