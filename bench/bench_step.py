"""The whole training step of `edsr_baseline_x2_eco` (batch 16), against eager NCHW and the machine's own peak.

    pytest bench/bench_step.py

The convolutions are the cost of this network, so nothing else may be: the share of the peak says how much there is.
All figures come from one run; `extra_info` and the last lines hold the ratios.
"""

import statistics
import time
from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from eco_fast import config
from eco_fast.batch import Batch
from eco_fast.config import Config
from eco_fast.loader import PlainLoader
from eco_fast.models import build
from eco_fast.optim import Updater
from eco_fast.train import batch_loss, loss_function

ROUNDS = 9
Step = Callable[[], object]

pytestmark = pytest.mark.benchmark(group="step")


@pytest.fixture(scope="module")
def recipe() -> Config:
    return config.load("edsr_baseline_x2_eco")


@pytest.fixture(scope="module")
def batches(recipe: Config) -> list[Batch]:
    """Batches from the middle of the training, where HR and the centroid are both read."""
    random = np.random.default_rng(0)
    pictures = [random.integers(0, 256, (400, 500, 3), dtype=np.uint8) for _ in range(8)]
    loader = PlainLoader(recipe, pictures[:4], pictures[4:])
    middle = recipe.train.steps // 2
    return [loader.batch_at(middle + step) for step in range(4)]


def training_step(recipe: Config, batches: list[Batch], device: str, *, fast: bool) -> Step:
    """One whole step of the trainer; `fast` is channels_last and compiled, otherwise eager and NCHW."""
    torch.manual_seed(0)
    network = build(recipe.model, recipe.scale).to(device)
    if fast:
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    train = recipe.train.model_copy(update={"compile": fast})
    compute_loss = loss_function(network, recipe.model_copy(update={"train": train}), device)
    if not fast:
        compiled = compute_loss

        def compute_loss(lr: torch.Tensor, *rest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return compiled(lr.contiguous(), *rest)

    updater = Updater(network.parameters(), recipe.optimizer, device)
    endless = _repeat(batches)

    def step() -> float:
        loss, finite = batch_loss(compute_loss, next(endless).to(device), recipe)
        loss.backward()
        updater.step(loss, finite, recipe.optimizer.learning_rate)
        return loss.item()

    return step


def bare_convolution(recipe: Config, device: str) -> Step:
    """Forward and backward of one 3x3 convolution of the body, at the batch's size."""
    features, patch = recipe.model.features, recipe.data.patch
    layer = nn.Conv2d(features, features, 3, padding=1).to(device)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(recipe.train.batch, features, patch, patch, device=device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = torch.randn_like(x.detach())

    def step() -> None:
        for _ in range(8):
            layer(x).backward(y)
        _wait(device)

    return step


def bare_matmul(device: str) -> Step:
    """A large float32 matrix product."""
    first, second = torch.randn(2, 2048, 2048, device=device)

    def step() -> None:
        torch.mm(first, second)
        _wait(device)

    return step


def test_step_against_eager_and_peak(
    benchmark: BenchmarkFixture, recipe: Config, batches: list[Batch], device: str
) -> None:
    """Every round times all four one after the other, so that a change of the machine's mood hits all alike."""
    network = build(recipe.model, recipe.scale)
    flops = 6 * multiply_adds(network, recipe.data.patch) * recipe.train.batch
    pixels = recipe.train.batch * recipe.data.patch**2
    fast = training_step(recipe, batches, device, fast=True)
    others = {
        "eager NCHW": (training_step(recipe, batches, device, fast=False), flops),
        "convolution": (bare_convolution(recipe, device), 8 * 6 * 9 * recipe.model.features**2 * pixels),
        "matmul": (bare_matmul(device), 2 * 2048**3),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ("step", *others)}

    def measured() -> None:
        seconds["step"].append(_time(fast))

    def before_round() -> None:
        for name, (run, _) in others.items():
            seconds[name].append(_time(run))

    fast()
    for run, _ in others.values():
        run()
    benchmark.pedantic(measured, setup=before_round, rounds=ROUNDS, warmup_rounds=1)

    median = {name: statistics.median(times) for name, times in seconds.items()}
    rates = {name: work / median[name] / 1e9 for name, (_, work) in others.items()}
    rates["step"] = flops / median["step"] / 1e9
    peak = max(rates["convolution"], rates["matmul"])
    paired = [eager / step for eager, step in zip(seconds["eager NCHW"], seconds["step"], strict=True)]
    result = {
        "seconds_per_step": median["step"],
        "speedup_over_eager_nchw": statistics.median(paired),
        "share_of_peak": rates["step"] / peak,
        **{f"gflops_{name}": rate for name, rate in rates.items()},
    }
    benchmark.extra_info.update(result)
    print("\n" + "\n".join(f"{name}: {value:.3f}" for name, value in result.items()))


def multiply_adds(network: nn.Module, patch: int) -> int:
    """Multiply-adds of one forward pass of one LR patch, counted from the convolutions' own shapes."""
    counts: list[int] = []

    def count(layer: nn.Module, _: object, out: torch.Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        counts.append(layer.weight.numel() * out.shape[-2] * out.shape[-1])

    hooks = [layer.register_forward_hook(count) for layer in network.modules() if isinstance(layer, nn.Conv2d)]
    with torch.no_grad():
        network(torch.zeros(1, 3, patch, patch))
    for hook in hooks:
        hook.remove()
    return sum(counts)


def _repeat(batches: list[Batch]) -> Iterator[Batch]:
    while True:
        yield from batches


def _time(run: Step) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
