"""What the kernels of attention in windows have in common: tiles of tokens, the bias and mask of their scores.

A tile is [tokens of a window, channels of a head], padded in registers to the PADDED channels that a product takes.
Windows lie on a grid that begins at (SHIFT, SHIFT) and goes on at the other side of the image.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from eco_fast_kernels.attention import MASKED, fits, has_tensor_cores

SCORE_MASKED = tl.constexpr(MASKED)


class TileForm(NamedTuple):
    """How a device computes attention."""

    rows: int
    """Queries of a program, or keys where it makes the keys' gradients: whole rows of a window, or all of it."""
    warps: int
    tensor_cores: bool
    """Multiply in the dtype of the input, on tensor cores; else in float32, without."""


def form_of(qkv: Tensor, heads: int, window: int) -> TileForm:
    """The form for the tensor's device, dtype and size of heads."""
    capability = torch.cuda.get_device_capability(qkv.device)
    return choose_form(capability, qkv.dtype, padded_size(qkv.shape[3], heads), window)


def choose_form(capability: tuple[int, int], dtype: torch.dtype, channels: int, window: int) -> TileForm:
    """A whole window in one program where the registers hold it, else as much as they hold.

    Triton has left sm_75's tensor cores alone since 3.3. Without tensor cores a product takes its operands as a whole
    into registers and shared memory, which are too small for wide heads.
    """
    if not has_tensor_cores(capability, dtype):
        if not fits(window, channels, tensor_cores=False):
            raise ValueError(
                f"window_attention: windows of {window} with more than {256 // window} channels a head need tensor "
                "cores: use 16 bits or TF32 on an NVIDIA GPU of compute capability 8.0 or later; "
                f"got {dtype} on {capability}"
            )
        return TileForm(rows=32 if channels == 16 and window == 8 else 16, warps=8, tensor_cores=False)
    if window == 16:
        return TileForm(rows=16, warps=8, tensor_cores=True)
    whole = channels <= 16 or (channels == 32 and capability < (12, 0))  # sm_120's compiler would spill some
    return TileForm(rows=64 if whole else 32, warps=4, tensor_cores=True)


def padded_size(channels: int, heads: int) -> int:
    """Channels of a head in registers, of 3 * C channels: a power of two, and what a product takes at least."""
    return max(16, 1 << (channels // 3 // heads - 1).bit_length())


def grid_of(qkv: Tensor, heads: int, window: int, rows: int, programs: int) -> tuple[tuple[int, int, int], int]:
    """The kernels' grid of about so many programs, and how many windows each of them goes through."""
    windows = qkv.shape[0] * qkv.shape[1] * qkv.shape[2] // window**2
    tiles = window**2 // rows
    run = triton.cdiv(windows * heads * tiles, programs)
    return (heads, triton.cdiv(windows, run), tiles), run


def constants_of(channels: int, heads: int, window: int, shift: int, form: TileForm) -> dict[str, Any]:
    """What the kernels are compiled for, with options of the launch."""
    # on tensor cores, Triton spreads a tile over the warps' columns only where it is wider than high
    narrowest = 2 * form.rows if form.tensor_cores and form.rows == 16 else 16
    return {
        "HEADS": heads,
        "SIZE": channels // 3 // heads,
        "PADDED": max(narrowest, padded_size(channels, heads)),
        "SIDE": window,
        "SHIFT": shift,
        "ROWS": form.rows,
        "TENSOR_CORES": form.tensor_cores,
        "num_warps": form.warps,
        "num_stages": 1,
    }


@triton.jit
def places_of(window, i_token, height, width, SIDE: tl.constexpr, SHIFT: tl.constexpr):
    """Where a window's tokens are among the tokens of all images."""
    across = width // SIDE
    of_image = height // SIDE * across
    y = window % of_image // across * SIDE + i_token // SIDE + SHIFT
    x = window % across * SIDE + i_token % SIDE + SHIFT
    if SHIFT:
        y = tl.where(y < height, y, y - height)
        x = tl.where(x < width, x, x - width)
    return ((window // of_image).to(tl.int64) * height + y) * width + x


@triton.jit
def mask_of(window, i_one, i_other, height, width, SIDE: tl.constexpr, SHIFT: tl.constexpr):
    """What is added to scores of a window's tokens, whose numbers have shapes that broadcast."""
    across, down = width // SIDE, height // SIDE
    lowest, rightmost = window // across % down == down - 1, window % across == across - 1
    apart = lowest & ((i_one // SIDE < SIDE - SHIFT) != (i_other // SIDE < SIDE - SHIFT))
    apart |= rightmost & ((i_one % SIDE < SIDE - SHIFT) != (i_other % SIDE < SIDE - SHIFT))
    return tl.where(apart, SCORE_MASKED, 0.0)


@triton.jit
def position_bias(table, head, i_query, i_key, HEADS: tl.constexpr, SIDE: tl.constexpr):
    """The bias of scores of queries and keys, whose numbers have shapes that broadcast."""
    i_query, i_key = i_query.to(tl.int64), i_key.to(tl.int64)  # so that addresses differ by constants
    rows = i_query // SIDE - i_key // SIDE + SIDE - 1
    columns = i_query % SIDE - i_key % SIDE + SIDE - 1
    return tl.load(table + (rows * (2 * SIDE - 1) + columns) * HEADS + head).to(tl.float32)


@triton.jit
def part_of_bias(qkv_bias, head, PART: tl.constexpr, HEADS: tl.constexpr, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """Of a head's queries (PART 0), keys (1) or values (2): [1, PADDED]."""
    o = tl.arange(0, PADDED)
    return tl.load(qkv_bias + (PART * HEADS + head) * SIZE + o, mask=o < SIZE, other=0.0).to(tl.float32)[None, :]


@triton.jit
def load_tile(
    tensor,  # [tokens, PARTS * HEADS * SIZE]
    places,
    head,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
):
    o = tl.arange(0, PADDED)[None, :]
    rows = tensor + places[:, None] * (PARTS * HEADS * SIZE) + (PART * HEADS + head) * SIZE
    return tl.load(rows + o, mask=o < SIZE, other=0.0)


@triton.jit
def store_tile(
    tensor,
    values,
    places,
    head,
    PART: tl.constexpr,
    PARTS: tl.constexpr,
    HEADS: tl.constexpr,
    SIZE: tl.constexpr,
    PADDED: tl.constexpr,
):
    o = tl.arange(0, PADDED)[None, :]
    rows = tensor + places[:, None] * (PARTS * HEADS * SIZE) + (PART * HEADS + head) * SIZE
    tl.store(rows + o, values.to(tensor.dtype.element_ty), mask=o < SIZE)
