"""Forward and backward of every family as the trainer runs it, against an independent implementation, in one run.

    pytest bench/bench_models.py -s

| way | what is timed |
|---|---|
| trained | ours as `Step` sets it up: its memory format, compiled where that pays on this device |
| eager | ours uncompiled |
| contiguous | ours uncompiled in torch's own memory format |
| theirs | spandrel's network of the same weights (it has no EDSR) |
| convolution | the machine's own peak |

Every round times all of them one after the other; ratios are medians of the rounds' own ratios. Networks keep the
gradients' memory from step to step, and all leave out nothing: no stochastic depth.
"""

import copy
import statistics
import time

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from torch import nn

from eco_fast.config import EdsrModel, Model, RcanModel, RrdbModel, SwinirModel
from eco_fast.models import Network, build, compile_blocks, spandrel_net
from eco_fast.training.bench.timing import alternately, ratios, spread
from eco_fast.training.profiling import Work, convolution, training_flops

PATCH = 48
ROUNDS = 7
CASES: dict[str, tuple[Model, int, int]] = {  # network, scale, batch
    "SwinIR-S x2": (SwinirModel(features=60, depths=(6,) * 4, heads=(6,) * 4, upsampler="pixelshuffledirect"), 2, 4),
    "RCAN x2": (RcanModel(), 2, 2),
    "RRDB x4": (RrdbModel(), 4, 1),
    "EDSR-baseline x2": (EdsrModel(), 2, 4),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore:torch.meshgrid")  # which spandrel calls
def test_network(benchmark: BenchmarkFixture, device: str, name: str) -> None:
    """All ways in turn."""
    spandrel = spandrel_net.spandrel()
    model, scale, batch = CASES[name]
    network = build(model, scale).to(device).train()
    networks: dict[str, nn.Module] = {way: copy.deepcopy(network) for way in ("trained", "eager", "contiguous")}
    for way in ("trained", "eager"):
        networks[way].to(memory_format=network.memory_format)  # type: ignore[call-overload]
    if torch.device(device).type in network.compiled_on:
        compile_for_training(networks["trained"])
    if model.name != "edsr":
        other = spandrel.ModelLoader(device).load_from_state_dict(network.state_dict()).model
        networks["theirs"] = other.eval().requires_grad_(requires_grad=True)  # eval: without stochastic depth
    ways = {way: step_of(one, batch, device, way) for way, one in networks.items()}
    began = time.perf_counter()
    ways["trained"]()
    compile_seconds = time.perf_counter() - began
    peak, peak_flops = convolution(16, device, torch.float32)
    ways["convolution"] = peak
    seconds: dict[str, list[float]] = {way: [] for way in ways}

    def measured() -> None:
        for way, total in alternately(ways, 1, device).items():
            seconds[way].append(total)

    benchmark.pedantic(measured, rounds=ROUNDS)
    flops = training_flops(network, PATCH) * batch
    against = {way: spread(ratios(seconds[way], seconds["trained"])).median for way in ways}
    result = {
        "seconds": statistics.median(seconds["trained"]),
        "first_step_seconds": compile_seconds,
        **{f"{way}_over_trained": against[way] for way in networks if way != "trained"},
        "share_of_peak": against["convolution"] * flops / peak_flops,
    }
    benchmark.extra_info.update(result)
    print(f"\n{name}, batch {batch}\n" + "\n".join(f"{key}: {value:.3f}" for key, value in result.items()))


def compile_for_training(network: nn.Module) -> None:
    """As `Step` does."""
    assert isinstance(network, Network)
    torch.compiler.reset()
    if network.repeated_block is None:
        network.compile(fullgraph=True, dynamic=False)
    else:
        compile_blocks(network)


def step_of(network: nn.Module, batch: int, device: str, way: str) -> Work:
    """Forward and backward on random images."""
    lr = torch.rand(batch, 3, PATCH, PATCH, device=device)
    if way in ("trained", "eager"):
        lr = lr.contiguous(memory_format=torch.channels_last)

    def work() -> None:
        network.zero_grad()
        network(lr).abs().mean().backward()

    return work
