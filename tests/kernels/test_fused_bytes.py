"""What the kernels read and write: the compulsory bytes, and those that all threads together ask for."""

import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from eco_fast_kernels import (
    STENCILS,
    crop_side,
    downsample_blend,
    empty_crops,
    margin_of,
    normalisation,
    reference,
    window_attention,
)
from eco_fast_kernels.fused import add_norm as norm
from eco_fast_kernels.fused import bias_gelu as gelu
from eco_fast_kernels.fused import column_sums
from eco_fast_kernels.fused import decide_step as decide
from eco_fast_kernels.fused import downsample_blend as blend
from torch import Tensor

from bench import compulsory, counting, traffic

pytestmark = pytest.mark.slow

Measured = dict[str, traffic.PerValue]

README = Path(__file__).parents[2] / "kernels" / "README.md"
PATCH = traffic.RECIPES_PATCH
STATE = 2 * (2 * 4 + 5 * 8 + 8) + 4 + 1
"""Bytes of a decision's state: two floats, five counts and a sum in and out, a place of each log out."""


@pytest.fixture(scope="module")
def measured(device: str) -> Measured:
    """The table of `python -m bench.traffic`."""
    if device != "cpu":
        pytest.skip("accesses are counted in Triton's interpreter, and with a GPU the kernels are not interpreted")
    return traffic.measure_kernels()


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def bytes_of(*tensors: Tensor | None) -> int:
    return sum(tensor.nbytes for tensor in tensors if tensor is not None)


# --- compulsory: as many bytes as the op's own arrays have ---


@pytest.mark.parametrize("scale", STENCILS)
def test_compulsory_bytes_of_cutting(scale: int) -> None:
    crops = empty_crops(2, crop_side(scale, 6), margin_of(scale))
    expected = (crops.numel() + crops.untyped_storage().nbytes()) / crops.numel()
    assert compulsory.cut_crops(scale, 6) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("images", [1, 2])
@pytest.mark.parametrize("scale", STENCILS)
def test_compulsory_bytes_of_the_blend(scale: int, images: int, dtype: torch.dtype) -> None:
    side = crop_side(scale, 6)
    hr, sr = random_bytes(2, side, side, 3), random_bytes(2, side, side, 3) if images == 2 else None
    out = downsample_blend(hr, sr, torch.tensor(0.5), scale, dtype=dtype)
    expected = bytes_of(hr, sr, out) / out.numel()
    assert compulsory.downsample_blend(scale, 6, dtype.itemsize, images) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("images", [1, 2])
def test_compulsory_bytes_of_the_loss(images: int, dtype: torch.dtype) -> None:
    prediction = torch.rand(2, 3, 5, 7).to(dtype)
    hr, sr = random_bytes(2, 5, 7, 3), random_bytes(2, 5, 7, 3) if images == 2 else None
    _, gradient = reference.blended_loss_and_gradient(prediction, hr, sr, torch.tensor(0.5), "l1", 0, None)
    expected = bytes_of(prediction, hr, sr, gradient) / prediction.numel()
    assert compulsory.blended_loss(dtype.itemsize, images) == expected


def test_compulsory_bytes_of_attention() -> None:
    qkv, qkv_bias, table = torch.rand(1, 8, 8, 60), torch.rand(60), torch.rand(225, 2)
    out = window_attention(qkv.requires_grad_(), qkv_bias, table, 8, 0)
    upstream = torch.rand_like(out)
    (gradient,) = torch.autograd.grad(out, qkv, upstream)
    assert compulsory.window_attention(4) == bytes_of(qkv, out, qkv, upstream, gradient) / out.numel()


@pytest.mark.parametrize("average", [False, True])
def test_compulsory_bytes_of_lamb(average: bool) -> None:
    parameter, gradient, m, v, mean = arrays = [torch.rand(7) for _ in range(5)]
    before = [array.clone() for array in arrays]
    reference.lamb_step(
        [parameter], [gradient], [m], [v], [mean] if average else [], reference.LambOptions(),
        torch.tensor(0.1), torch.tensor(False), torch.tensor(1.0),
    )  # fmt: skip
    read = arrays if average else arrays[:4]
    written = [array for array, old in zip(arrays, before, strict=True) if not torch.equal(array, old)]
    assert compulsory.lamb_step(average=average) == bytes_of(*read, *written) / parameter.numel()


@pytest.mark.parametrize("branch", [torch.bfloat16, torch.float32], ids=str)
def test_compulsory_bytes_of_the_norm(branch: torch.dtype) -> None:
    given = traffic.random_norm(2, 3, 5, 7)
    stream, added = given[0].requires_grad_(), given[1].to(branch).requires_grad_()
    given[1], given[-1] = added, branch
    total, normalised = normalisation.add_norm(*given)
    upstream = [one.detach() for one in (total, normalised)]
    gradients = torch.autograd.grad((total, normalised), (stream, added), upstream)
    of_a_value = bytes_of(stream, added, total, normalised) / stream.numel()
    assert compulsory.add_norm(4, branch.itemsize) == of_a_value
    of_a_value = bytes_of(*upstream, total, *gradients) / stream.numel()
    assert compulsory.add_norm(4, branch.itemsize, of_gradient=True) == of_a_value


def test_compulsory_bytes_of_gelu() -> None:
    x = torch.randn(3, 7).bfloat16().requires_grad_()
    y = normalisation.bias_gelu(x, torch.randn(7))
    (gradient,) = torch.autograd.grad(y, x, y.detach())
    assert compulsory.bias_gelu(2) == bytes_of(x, y) / x.numel()
    assert compulsory.bias_gelu(2, of_gradient=True) == bytes_of(y, x, gradient) / x.numel()


# --- requested: every access of every thread, by what the programs are made of ---


def readable_row(scale: int) -> int:
    """Bytes of a crop's row: the unused ones before it, its pixels, and what is missing to a multiple of 16."""
    lead = -3 * 2 * scale % 16
    return math.ceil((lead + 3 * crop_side(scale, PATCH)) / 16) * 16


@pytest.mark.parametrize("scale", STENCILS)
def test_requested_bytes_of_cutting(measured: Measured, scale: int) -> None:
    side, row = crop_side(scale, PATCH), readable_row(scale)
    programs = math.ceil(side / 32) * math.ceil(row / 64)
    requested = 3 * side**2 + side * row + programs * 7 * 8  # the image's bytes, the crop's rows, the plan
    assert measured[f"cut_crops x{scale}"].requested == requested / (3 * side**2)


@pytest.mark.parametrize(("scale", "rounded"), [(2, 37.6), (3, 77.8), (4, 144.2)])
def test_requested_bytes_of_the_blend(measured: Measured, scale: int, rounded: float) -> None:
    taps = 4 * scale - scale % 2
    of_a_row = 2 * taps * readable_row(scale) + 4 + 3 * PATCH * 2  # of hr and sr; alpha, the output in bfloat16
    requested = measured[f"downsample_blend x{scale}, hr and sr, bf16"].requested
    assert requested == of_a_row / (3 * PATCH)
    assert round(requested, 1) == rounded


def test_requested_bytes_of_the_loss(measured: Measured) -> None:
    rows, programs = 2 * PATCH, 2 * PATCH // 32
    values = 3 * (2 * PATCH) ** 2
    # Prediction, hr, sr and gradient; alpha for each row; the gradient's scale, and a partial sum that is read again.
    requested = (2 + 1 + 1 + 2) * values + 4 * rows + (4 + 4 + 4) * programs + 4 + 1  # the loss, whether it is finite
    assert measured["blended_loss l1 x2, hr and sr, bf16"].requested == requested / values


def test_requested_bytes_of_attention(measured: Measured) -> None:
    heads, windows, tokens, size = 6, 2, 64, 10
    tile, bias, sums = tokens * size * 2, size * 4, (4 * tokens + 2 * 16) * 4
    # In each program a table's entry for each pair of tokens, which neighbours share; the sums are written and read.
    of_forward = 4 * tile + tokens**2 * 4 + 2 * bias
    of_backward = 7 * tile + tokens**2 * 4 + bias + 2 * sums
    of_parameters = 225 * heads * 4 + 3 * heads * size * 4  # their gradients, out
    requested = heads * windows * (of_forward + of_backward) + of_parameters
    assert measured["window_attention 8, bf16, with gradients"] == (22, requested / (windows * heads * tokens * size))


def test_requested_bytes_of_the_decision(measured: Measured) -> None:
    gradients = 64 * 64 * 9
    answers = 4 * math.ceil(gradients / decide.SEARCHED)
    rest = 4 + STATE + 1 + 4  # the loss; the state in and out; whether to skip, and the scale
    assert measured["decide_step"] == (4, (4 * gradients + 2 * answers + rest) / gradients)


@pytest.mark.parametrize("average", [False, True])
def test_requested_bytes_of_lamb(measured: Measured, average: bool) -> None:
    """p, g, m, v in and m, v out; then p, m, v in and p out, with the average in and out."""
    of_a_weight = 4 * ((4 + 2) + (3 + 1) + 2 * average)
    requested = measured["lamb_step with average" if average else "lamb_step"].requested
    assert of_a_weight <= requested <= of_a_weight + 0.1  # addresses and sums of each block of 1024


def test_requested_bytes_of_the_norm(measured: Measured) -> None:
    rows, channels = column_sums.ROWS, 60
    programs = rows * 64 // norm.TILE
    # Stream, branch, total, normalised values; a row's factor and statistics; bias, weight and bias of each program.
    requested = rows * (channels * (4 + 2 + 4 + 2) + 4 + 2 * 4) + programs * 3 * 4 * channels
    assert measured["add_norm, 60 channels, bf16"].requested == requested / (rows * channels)
    # Two upstream gradients and the total, two gradients; weight; three parts out, in again, and their sums.
    requested = rows * (channels * (4 + 2 + 4 + 4 + 2) + 4 + 2 * 4) + 4 * channels + 3 * 3 * 4 * channels
    assert measured["add_norm gradient, 60 channels, bf16"].requested == requested / (rows * channels)


def test_requested_bytes_of_gelu(measured: Measured) -> None:
    rows, channels = column_sums.ROWS, 120
    requested = rows * channels * (2 + 2) + rows * 128 // gelu.TILE * 4 * channels  # x, y; each program's bias
    assert measured["bias_gelu, 120 channels, bf16"].requested == requested / (rows * channels)
    requested = rows * channels * (2 + 2 + 2) + 4 * channels + 3 * 4 * channels  # a part out and in, the sum
    assert measured["bias_gelu gradient, 120 channels, bf16"].requested == requested / (rows * channels)


@pytest.mark.parametrize("average", [False, True])
def test_requested_bytes_of_muon(measured: Measured, average: bool) -> None:
    """g, m in, m out; g, m in, x out; in each of five rounds x twice, squares, x in and out; at last x, p in, p out."""
    of_a_weight = (3 * 4) + (2 * 4 + 2) + 5 * (2 + 2 + 2 + 2) + (2 * 4 + 2) + 8 * average
    squares = 5 * (1 + 4 + 9) * 2 * 64**2 / (64 * 576)  # a written; a read thrice, the polynomial written; read for x
    requested = measured["muon_step with average" if average else "muon_step"].requested
    assert of_a_weight + squares <= requested <= of_a_weight + squares + 0.3  # what the lists and sums take
    assert measured["muon_step with average" if average else "muon_step"].compulsory == 20 + 8 * average


def test_the_readme_has_these_figures(measured: Measured) -> None:
    rows = re.findall(r"^\| (.+?) \| ([\d.]+) \| ([\d.]+) \| ([\d.]+) \|$", README.read_text("utf-8"), re.MULTILINE)
    written = {name: tuple(map(float, figures)) for name, *figures in rows}
    assert written == {
        name: (round(least, 1), round(requested, 1), round(requested / least, 2))
        for name, (least, requested) in measured.items()
    }


# --- the rule by which eager operators are counted ---


@pytest.mark.parametrize(
    ("work", "launches", "read_and_written"),
    [
        (lambda a, b: a + b, 1, 4 * (12 + 12 + 12)),
        (lambda a, _: a + a, 1, 4 * (12 + 12)),  # one address, once
        (lambda a, _: a[:1].expand(3, 4) + a, 1, 4 * (12 + 12 + 4 - 4 + 4)),
        (lambda a, b: a.add_(b), 1, 4 * (12 + 12 + 12)),
        (lambda a, b: a.copy_(b), 1, 4 * (12 + 12)),  # what is overwritten is not read
        (lambda a, _: a.zero_(), 1, 4 * 12),
        (lambda a, _: torch.zeros_like(a), 1, 4 * 12),
        (lambda a, _: a.view(12)[2:].view(2, 5), 0, 0),
        (lambda a, b: torch._foreach_add_([a, b], 1.0), 1, 4 * 2 * (12 + 12)),
    ],
)
def test_an_operator_reads_and_writes_each_address_once(work: Any, launches: int, read_and_written: int) -> None:
    first, second = torch.rand(3, 4), torch.rand(3, 4)
    assert counting.count_eager(lambda: work(first, second)) == (launches, read_and_written)


def test_a_kernel_reads_and_writes_each_address_once(device: str) -> None:
    """LAMB reads and writes its moments and weights, which are two accesses; the blend's programs share rows."""
    if device != "cpu":
        pytest.skip("needs Triton's interpreter")
    weights = 2048
    counts = counting.count_fused(traffic.fused_lamb([torch.randn(weights)], [torch.randn(weights)], []))
    assert counts.launches == 2
    assert 40 * weights <= counts.bytes <= 40 * weights + 200  # one tensor's addresses, sums and scalars
    hr, sr = (traffic.random_crops(1, 2, 2) for _ in range(2))
    counts = counting.count_fused(lambda: blend.launch(hr, sr, traffic.ALPHA, 2, "uint8", None, torch.bfloat16))
    rows, row = 12 - 2 * 1, 48  # the stencil leaves the first and the last row; 4 + 36 bytes, to a multiple of 16
    assert counts == (1, 2 * rows * row + 4 + 2 * 2 * 3 * 2)  # alpha, the output
