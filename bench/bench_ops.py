"""Each op on this device against its plain-torch reference, eager and compiled, and against a copy of the same bytes.

    pytest bench/bench_ops.py

On a GPU the op is Triton; on a CPU it is the reference, so there the comparison shows what compiling it would bring.
LAMB is measured as the optimizer that the device gets, against the authors' loop over the tensors.
`extra_info` holds the compulsory bytes (`bench.compulsory`), and the rate that they make with the measured time.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Literal

import pytest
import torch
from eco_fast_kernels import (
    StepRules,
    StepState,
    blended_loss,
    crop_side,
    cut_crops,
    decide_step,
    decision,
    downsample_blend,
    margin_of,
    reference,
)
from eco_fast_kernels.crops import empty_crops, move_crops
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from bench import compulsory
from bench.network_op_work import network_op_work
from bench.plain import lamb_parameters, lamb_per_tensor, rcan_shapes
from eco_fast.config import Optimizer, RcanModel
from eco_fast.models import build
from eco_fast.training.optim.flat import move_into_one_buffer
from eco_fast.training.optim.lamb import Lamb
from eco_fast.training.optim.muon import Muon, matrices_first

SAMPLES, PATCH = 16, 48
WAYS = ("op", "reference", "compiled", "copy")
Run = Callable[[], object]


@pytest.mark.parametrize("way", ["op", "reference", "copy"])
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_cut_crops(benchmark: BenchmarkFixture, device: str, scale: int, way: str) -> None:
    """A batch of crops of a 2K image, in all orientations, two of them over its edges."""
    side, margin, height, width = crop_side(scale, PATCH), margin_of(scale), 1080, 2040
    pixels = torch.randint(0, 256, (height * width * 3,), dtype=torch.uint8, device=device)
    places = torch.rand(SAMPLES, 2) * torch.tensor([height - side, width - side])
    places[0], places[1] = -margin, torch.tensor([height, width]) - side + margin
    image = torch.tensor([0, 3 * width, height, width]).expand(SAMPLES, 4)
    plan = torch.cat([image, places.long(), torch.arange(SAMPLES)[:, None] % 8], dim=1).to(device)
    moved = round(SAMPLES * 3 * side**2 * compulsory.cut_crops(scale, PATCH))
    ways = {
        "op": lambda: cut_crops(pixels, plan, side, margin),
        "reference": lambda: reference.cut_crops(pixels, plan, side, margin),
    }
    _measure(benchmark, f"cut_crops x{scale}", ways, way, moved, device)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_downsample_blend(benchmark: BenchmarkFixture, device: str, scale: int, way: str) -> None:
    """Both crops in, the network's input out."""
    hr, sr = _crops(scale, device), _crops(scale, device)
    alpha = torch.tensor(0.5, device=device)
    moved = round(SAMPLES * 3 * PATCH**2 * compulsory.downsample_blend(scale, PATCH, 4))
    ways = {
        "op": lambda: downsample_blend(hr, sr, alpha, scale),
        "reference": lambda: reference.downsample_blend(hr, sr, alpha, scale),
        "compiled": _compiled(lambda: reference.downsample_blend(hr, sr, alpha, scale)),
    }
    _measure(benchmark, f"downsample_blend x{scale}", ways, way, moved, device)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", reference.LOSS_KINDS)
def test_blended_loss(benchmark: BenchmarkFixture, device: str, kind: reference.LossKind, way: str) -> None:
    """The loss and its gradient."""
    scale = 2
    hr, sr = _crops(scale, device), _crops(scale, device)
    alpha = torch.tensor(0.5, device=device)
    prediction = torch.rand(SAMPLES, 3, scale * PATCH, scale * PATCH, device=device)
    prediction = prediction.contiguous(memory_format=torch.channels_last).requires_grad_()
    moved = prediction.numel() * compulsory.blended_loss(prediction.element_size())
    margin = margin_of(scale)

    def plain() -> Tensor:
        return reference.blended_loss(prediction, hr, sr, alpha, kind, margin=margin)

    compiled = torch.compile(plain, dynamic=False)

    def backward(loss: Tensor) -> None:
        prediction.grad = None
        loss.backward()

    ways = {
        "op": lambda: backward(blended_loss(prediction, hr, sr, alpha, kind, margin=margin)[0]),
        "reference": lambda: backward(plain()),
        "compiled": lambda: backward(compiled()),
    }
    _measure(benchmark, f"blended_loss {kind}", ways, way, moved, device)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("op", "channels"),
    [
        *(("residual_epilogues", channels) for channels in (64, 256)),
        *(("channel_attention", channels) for channels in (64, 256)),
        *(("add_norm", channels) for channels in (60, 180)),
        *(("bias_gelu", channels) for channels in (120, 360)),
        *(("window_attention", channels) for channels in (60, 180)),
    ],
)
def test_network_ops(benchmark: BenchmarkFixture, device: str, op: str, channels: int, way: str) -> None:
    """What networks do around convolutions and matrix products, with the gradients, in bfloat16."""
    ways, moved = network_op_work(op, SAMPLES, channels, device)
    _measure(benchmark, f"{op}, {channels} channels", ways, way, moved, device)


@pytest.mark.parametrize("way", ["op", "reference", "copy"])
def test_decide_step(benchmark: BenchmarkFixture, device: str, way: str) -> None:
    """One decision over RCAN's gradients, with all rules."""
    parameters, _ = lamb_parameters(device)
    gradients = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    loss, rules = torch.tensor(3.0, device=device), StepRules(spike_factor=5.0, scales=True)
    state = StepState.at_start(device, places=100)
    ways = {
        "op": lambda: decide_step(gradients, loss, state, rules),
        "reference": lambda: decision.decide_step(gradients, loss, state, rules),
    }
    moved = compulsory.decide_step() * gradients.numel()
    _measure(benchmark, "decide_step, RCAN", ways, way, moved, device)


def test_lamb_step(benchmark: BenchmarkFixture, device: str) -> None:
    """One update of RCAN's list of parameters, by the backend that this device gets, against the authors' loop.

    Every round times all ways one after the other, so that a change of the machine's load meets them all.
    """
    recipe = Optimizer(name="lamb", betas=(0.9, 0.99), epsilon=1e-6, clip_value=0.1)
    parameters, _ = lamb_parameters(device)
    theirs, state = lamb_parameters(device)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    optimizer = Lamb(parameters, gradients, recipe, torch.tensor(1e-3, device=device))
    skip, one = torch.tensor(False, device=device), torch.ones((), device=device)
    moved = compulsory.lamb_step() * sum(parameter.numel() for parameter in parameters)
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device).fill_(1)
    target = torch.empty_like(source).fill_(0)

    ways: dict[str, Run] = {
        "backend": lambda: optimizer.step(skip, one),
        "authors' loop": lambda: lamb_per_tensor(theirs, state),
        "copy": lambda: target.copy_(source),
    }
    seconds: dict[str, list[float]] = {way: [] for way in ways}

    def timed(way: str) -> None:
        began = time.perf_counter()
        ways[way]()
        _wait(device)
        seconds[way].append(time.perf_counter() - began)

    def others() -> None:
        for way in ("authors' loop", "copy"):
            timed(way)

    for _ in range(2):
        timed("backend")
        others()
    for times in seconds.values():
        times.clear()
    benchmark.group = "lamb_step, RCAN"
    benchmark.pedantic(lambda: timed("backend"), setup=others, rounds=20)
    result = {f"milliseconds, {way}": 1e3 * statistics.median(times) for way, times in seconds.items()}
    for way in ("authors' loop", "copy"):
        paired = [other / own for other, own in zip(seconds[way], seconds["backend"], strict=True)]
        result[f"{way} / backend"] = statistics.median(paired)
    benchmark.extra_info.update(compulsory_bytes=moved, **result)
    print("\n" + "\n".join(f"{name}: {value:.2f}" for name, value in result.items()))


@pytest.mark.parametrize("way", ["op", "reference", "torch's loop", "copy"])
def test_muon_step(benchmark: BenchmarkFixture, device: str, way: str) -> None:
    """One update of RCAN's weights; torch's Muon goes matrix by matrix, and leaves the others where they are."""
    network = build(RcanModel(), 2).to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    every = list(network.parameters())
    order, count = matrices_first(every, network.body_matrices())
    weights = move_into_one_buffer([every[place] for place in order])
    gradients, rate = torch.randn_like(weights.buffer), torch.tensor(0.01, device=device)
    skip, one = torch.tensor(False, device=device), torch.ones((), device=device)

    def step(backend: Literal["auto", "torch"]) -> Run:
        optimizer = Muon(weights, count, gradients, Optimizer(name="muon", backend=backend), rate)
        return lambda: optimizer.step(skip, one)

    matrices = [nn.Parameter(torch.randn(64, 576, device=device)) for _ in range(count)]
    for matrix in matrices:
        matrix.grad = torch.randn_like(matrix)
    loop = torch.optim.Muon(matrices, weight_decay=0.0)
    ways = {"op": step("auto"), "reference": step("torch"), "torch's loop": loop.step}
    moved = compulsory.muon_step() * weights.buffer.numel()
    _measure(benchmark, "muon_step, RCAN", ways, way, moved, device)


def test_rcan_shapes_add_up() -> None:
    """The published number of parameters."""
    assert sum(nn.Parameter(torch.empty(shape)).numel() for shape in rcan_shapes()) == 15_444_643


def _crops(scale: int, device: str) -> Tensor:
    crops = empty_crops(SAMPLES, crop_side(scale, PATCH), margin_of(scale))
    return move_crops(crops.random_(0, 256), device)


def _compiled(run: Run) -> Run:
    return torch.compile(run, dynamic=False)


def _measure(
    benchmark: BenchmarkFixture, name: str, ways: Mapping[str, Run], way: str, moved: int, device: str
) -> None:
    benchmark.group = name
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    run = ways.get(way, lambda: target.copy_(source))  # reads and writes: the compulsory bytes

    def once() -> None:
        run()
        _wait(device)

    torch.compiler.reset()
    benchmark.pedantic(once, rounds=20, warmup_rounds=3)
    assert benchmark.stats is not None
    benchmark.extra_info.update(compulsory_bytes=moved, gigabytes_per_second=moved / benchmark.stats["median"] / 1e9)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
