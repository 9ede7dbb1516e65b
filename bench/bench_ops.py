"""Each op on this device against its plain-torch reference, eager and compiled, and against a copy of the same bytes.

    pytest bench/bench_ops.py

On a GPU the op is Triton; on a CPU it is the reference, so there the comparison shows what compiling it would bring.
`extra_info` holds the bytes that the contract says must move, and the rate that they make with the measured time.
"""

from collections.abc import Callable, Mapping

import pytest
import torch
from eco_fast_kernels import blended_loss, downsample_blend, lamb_step, margin_of, reference
from eco_fast_kernels.windows import empty_windows, move_windows
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn

from bench.plain import lamb_per_tensor, rcan_shapes

SAMPLES, PATCH = 16, 48
WAYS = ("op", "reference", "compiled", "copy")
Run = Callable[[], object]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_downsample_blend(benchmark: BenchmarkFixture, device: str, scale: int, way: str) -> None:
    """Both windows in, the network's input out."""
    hr, sr = _windows(scale, device), _windows(scale, device)
    alpha = torch.tensor(0.5, device=device)
    moved = 2 * hr.numel() + SAMPLES * 3 * PATCH**2 * 4
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
    hr, sr = _windows(scale, device), _windows(scale, device)
    alpha = torch.tensor(0.5, device=device)
    prediction = torch.rand(SAMPLES, 3, scale * PATCH, scale * PATCH, device=device)
    prediction = prediction.contiguous(memory_format=torch.channels_last).requires_grad_()
    moved = prediction.numel() * (2 * prediction.element_size() + 2)
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


@pytest.mark.parametrize("way", ["op", "per tensor", "copy"])
def test_lamb_step(benchmark: BenchmarkFixture, device: str, way: str) -> None:
    """One update of RCAN's list of parameters, against a loop over the tensors."""
    parameters = [torch.randn(shape, device=device) * 0.05 for shape in rcan_shapes()]
    gradients, exp_avg, exp_avg_sq = ([torch.randn_like(one).abs() for one in parameters] for _ in range(3))
    learning_rate = torch.tensor(1e-3, device=device)
    skip = torch.tensor(False, device=device)
    moved = 44 * sum(parameter.numel() for parameter in parameters)

    ways = {
        "op": lambda: lamb_step(parameters, gradients, exp_avg, exp_avg_sq, learning_rate=learning_rate, skip=skip),
        "per tensor": lambda: lamb_per_tensor(parameters, gradients, exp_avg, exp_avg_sq),
    }
    _measure(benchmark, "lamb_step, RCAN", ways, way, moved, device)


def test_rcan_shapes_add_up() -> None:
    """The published number of parameters."""
    assert sum(nn.Parameter(torch.empty(shape)).numel() for shape in rcan_shapes()) == 15_444_643


def _windows(scale: int, device: str) -> Tensor:
    windows = empty_windows(SAMPLES, scale * (PATCH + 4), margin_of(scale))
    return move_windows(windows.random_(0, 256), device)


def _compiled(run: Run) -> Run:
    return torch.compile(run, dynamic=False)


def _measure(
    benchmark: BenchmarkFixture, name: str, ways: Mapping[str, Run], way: str, moved: int, device: str
) -> None:
    benchmark.group = name
    source = torch.empty(moved // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    run = ways.get(way, lambda: target.copy_(source))  # reads and writes: as many bytes as the op must move

    def once() -> None:
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize(device)

    torch.compiler.reset()
    benchmark.pedantic(once, rounds=20, warmup_rounds=3)
    assert benchmark.stats is not None
    benchmark.extra_info.update(bytes_moved=moved, gigabytes_per_second=moved / benchmark.stats["median"] / 1e9)
