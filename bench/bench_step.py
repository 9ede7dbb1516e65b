"""The whole training step against the bare network, the field's loop, and the machine's own peak, in one run.

    pytest bench/bench_step.py -s

| way | what is timed |
|---|---|
| whole | the body of the training loop: next batch of the loader, input, network, loss, update, telemetry |
| bare | forward, L1, backward and Adam of the same compiled network on fixed tensors; on a GPU one CUDA graph |
| field | eager, NCHW, PNG sub-images through a DataLoader's workers, blend in Python, `.item()` every step |
| convolution, matmul | the machine's own peak |

Bare and peak compute in the recipe's precision and memory format, the field in torch's defaults.

Every round times all of them one after the other, whole and bare step by step, so that a change of the machine's speed
hits all alike; ratios are medians of the rounds' own ratios. `extra_info` and the last lines hold them. The field's
loop has a process of its own: what the trainer sets for its process, such as `tune_malloc`, is no part of that loop.
"""

import multiprocessing
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.utils.data import DataLoader

from bench.plain import SubImages, alternately, ratio, recorded, sub_images, time_of
from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.open_loader import open_loader
from eco_fast.data.store import Store
from eco_fast.models import build
from eco_fast.models.network import SubPixelConvolution
from eco_fast.training.memory import room_beside
from eco_fast.training.precision import choose_precision
from eco_fast.training.profiling import Work, convolution, matmul, training_flops
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.step_graph import choose_recorder
from eco_fast.training.telemetry import Telemetry
from eco_fast.utils.device import pick_device
from tests.helpers import write_store

ROUNDS = {"edsr_baseline_x2_eco": (7, 1, 16), "quickstart": (13, 12, 8)}  # rounds, steps in each, batch
SETTLE = 1.5  # seconds in which the DataLoader's workers fill their queue, so that they do not disturb what comes next


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_sub_images(tmp_path_factory.mktemp("images"))


def write_sub_images(folder: Path) -> Path:
    """480x480 sub-images as PNG files and as a store, and their centroids, which here are other sub-images."""
    generator = np.random.default_rng(0)
    for kind in ("hr", "sr"):
        (folder / kind).mkdir(parents=True)
        images = {f"{index}.png": image for index, image in enumerate(sub_images(32, generator))}
        for name, image in images.items():
            Image.fromarray(image).save(folder / kind / name, compress_level=3)
        write_store(folder / f"store-{kind}", images)
    return folder


def whole(recipe: Config, images: Path, device: str, folder: Path, stack: ExitStack) -> Work:
    """The body of the training loop, from the middle of the training, where HR and the centroid are both read."""
    start = recipe.train.steps // 2
    hr, sr = Store(images / "store-hr"), Store(images / "store-sr")
    state = TrainingState(recipe, device, None, "bench")
    loader = stack.enter_context(
        open_loader(recipe, hr, sr, start, device=device, room=room_beside(state), label="bench")
    )
    run = RunFolder(folder, recipe, resume=False)
    telemetry = stack.enter_context(Telemetry(run, loader, [], state, "bench"))
    step = TrainStep(state, loader.planner.count, recorder=choose_recorder(recipe.train, recipe.optimizer, device)[0])

    def work() -> None:
        batch = next(loader)
        step(batch)
        telemetry.add(batch.step)

    return work


def bare(recipe: Config, device: str) -> Work:
    """The same compiled network on fixed tensors, with an optimizer."""
    network = build(recipe.model, recipe.scale).to(device)
    network.to(memory_format=network.memory_format)  # type: ignore[call-overload]
    precision, on_gpu = choose_precision(recipe.train, device), device.startswith("cuda")
    side = recipe.data.patch
    lr, hr = (
        torch.rand(recipe.train.batch_size, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        for size in (side, recipe.scale * side)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True, capturable=on_gpu)

    def loss_of(lr: Tensor, hr: Tensor) -> Tensor:
        with precision.autocast(lr.device.type):
            prediction = network(lr)
        return nn.functional.l1_loss(prediction * 255, hr * 255)

    compiled = torch.compile(loss_of, fullgraph=True, dynamic=False)

    def work() -> None:
        compiled(lr, hr).backward()
        optimizer.step()
        optimizer.zero_grad()

    return recorded([work]) if on_gpu else work


def field(recipe: Config, images: Path, device: str, workers: int = 2) -> Work:
    """The field's loop with ECO's blend written in Python."""
    network = build(recipe.model, recipe.scale).to(device)
    plain_upsampling(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    dataset = SubImages([images / "hr", images / "sr"], recipe.scale, recipe.data.patch)
    batches = iter(DataLoader(dataset, batch_size=recipe.train.batch_size, num_workers=workers))
    alpha = 0.5

    def work() -> float:
        hr, lr_of_hr, sr, lr_of_sr = (image.to(device) for image in next(batches))
        lr, target = alpha * lr_of_hr + (1 - alpha) * lr_of_sr, alpha * hr + (1 - alpha) * sr
        loss = nn.functional.l1_loss(network(lr) * 255, target * 255)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_value_(network.parameters(), 0.1)
        optimizer.step()
        return loss.item()

    return work


def plain_upsampling(network: nn.Module) -> None:
    """Put torch's own layers in the place of ours."""
    for parent in list(network.modules()):
        for name, layer in parent.named_children():
            if isinstance(layer, SubPixelConvolution):
                convolution = nn.Conv2d(layer.in_channels, layer.out_channels, 3, padding=1).to(layer.weight.device)
                parent.register_module(name, nn.Sequential(convolution, nn.PixelShuffle(layer.factor)))


apart: dict[str, Work] = {}  # filled in the process apart alone


def start_apart(way: Callable[..., Work], *arguments: object) -> None:
    """Begin, in a process of its own, what `seconds_apart` times."""
    apart["work"] = way(*arguments)


def seconds_apart(times: int, device: str) -> float:
    """`time_of` what `start_apart` began."""
    return time_of(apart["work"], times, device)


@pytest.mark.parametrize("name", ROUNDS)
def test_step(benchmark: BenchmarkFixture, name: str, images: Path, tmp_path: Path) -> None:
    """All ways in turn."""
    device = pick_device("auto")
    rounds, steps, batch_size = ROUNDS[name]
    recipe = config.load(name, ["train.compile=true", f"train.batch_size={batch_size}"])
    dtype = choose_precision(recipe.train, device).dtype or torch.float32
    samples, side = (512, 8192) if device.startswith("cuda") else (16, 2048)  # enough to fill the device
    peaks = {"convolution": convolution(samples, device, dtype), "matmul": matmul(side, device, dtype)}
    times = {"convolution": 8, "matmul": 1}
    seconds: dict[str, list[float]] = {way: [] for way in ("whole", "bare", "field", *peaks)}
    with ExitStack() as stack:
        ways = {"whole": whole(recipe, images, device, tmp_path / "run", stack)}  # resets the compiler: comes first
        ways |= {"bare": bare(recipe, device)}
        ways |= {way: work for way, (work, _) in peaks.items()}
        spawned = multiprocessing.get_context("spawn")
        process = stack.enter_context(
            ProcessPoolExecutor(1, spawned, initializer=start_apart, initargs=(field, recipe, images, device))
        )

        def measured() -> None:
            for way, total in alternately({way: ways[way] for way in ("whole", "bare")}, steps, device).items():
                seconds[way].append(total)
            seconds["field"].append(process.submit(seconds_apart, steps, device).result())
            time.sleep(SETTLE)
            for way in peaks:
                seconds[way].append(time_of(ways[way], times[way], device))

        benchmark.pedantic(measured, rounds=rounds, warmup_rounds=2)
    for values in seconds.values():
        del values[:2]  # of the warm-up

    flops = training_flops(build(recipe.model, recipe.scale), recipe.data.patch) * recipe.train.batch_size
    rates = {way: [work / value / 1e9 for value in seconds[way]] for way, (_, work) in peaks.items()}
    rates["whole"] = [flops / value / 1e9 for value in seconds["whole"]]
    best = [max(pair) for pair in zip(rates["convolution"], rates["matmul"], strict=True)]
    result = {
        "seconds_per_step": statistics.median(seconds["whole"]),
        "whole_over_bare": ratio(seconds["whole"], seconds["bare"]),
        "field_over_whole": ratio(seconds["field"], seconds["whole"]),
        "share_of_peak": ratio(rates["whole"], best),
        **{f"gflops_{way}": statistics.median(values) for way, values in rates.items()},
    }
    benchmark.extra_info.update(result)
    print(f"\n{name}\n" + "\n".join(f"{key}: {value:.3f}" for key, value in result.items()))
