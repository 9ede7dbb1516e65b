"""The whole training step against the bare network, the field's loop, and the machine's own peak, in one run.

    pytest bench/bench_step.py -s

| way | what is timed |
|---|---|
| whole | the body of the training loop: next batch of the loader, input, network, loss, update, telemetry |
| bare | forward, L1, backward and Adam of the same compiled network on fixed tensors |
| field | eager, NCHW, PNG sub-images through a DataLoader of two workers, blend in Python, `.item()` every step |
| convolution, matmul | the machine's own peak |

Every round times all of them one after the other, so that a change of the machine's mood hits all alike; ratios are
medians of the rounds' own ratios. `extra_info` and the last lines hold them.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pytest_benchmark.fixture import BenchmarkFixture
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data import open_loader
from eco_fast.device import pick_device
from eco_fast.images import builtin_images, read_image
from eco_fast.measure import training_flops
from eco_fast.models import build
from eco_fast.optim import learning_rate_at
from eco_fast.run_folder import RunFolder
from eco_fast.step import Step
from eco_fast.store import Store, Writer
from eco_fast.telemetry import Telemetry
from eco_fast.train import TrainingState

ROUNDS = {"edsr_baseline_x2_eco": (7, 1), "quickstart": (15, 12)}  # rounds, and steps in each
SIDE = 480  # of the sub-images
SETTLE = 1.5  # seconds in which the DataLoader's workers fill their queue, so that they do not disturb what comes next
Work = Callable[[], object]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """480x480 sub-images as PNG files and as a store, and their centroids, which here are other sub-images."""
    folder = tmp_path_factory.mktemp("pictures")
    random = np.random.default_rng(0)
    photos = [read_image(path) for group in ("train", "test") for _, path in builtin_images(group)]
    photos = [photo for photo in photos if min(photo.shape[:2]) >= SIDE]
    for kind in ("hr", "sr"):
        (folder / kind).mkdir()
        writer = Writer(folder / f"store-{kind}", {"kind": "hr"})
        for index in range(32):
            photo = photos[index % len(photos)]
            top, left = (random.integers(0, size - SIDE + 1) for size in photo.shape[:2])
            noise = random.normal(0, 1, (SIDE, SIDE, 3))
            picture = np.clip(photo[top : top + SIDE, left : left + SIDE] + noise, 0, 255).astype(np.uint8)
            Image.fromarray(picture).save(folder / kind / f"{index}.png", compress_level=3)
            writer.add(f"{index}.png", picture, origin=str(index))
        writer.finish()
    return folder


def whole(recipe: Config, pictures: Path, device: str, folder: Path, stack: ExitStack) -> Work:
    """The body of the training loop, from the middle of the training, where HR and the centroid are both read."""
    start, steps = recipe.train.steps // 2, recipe.train.steps
    hr, sr = Store(pictures / "store-hr"), Store(pictures / "store-sr")
    state = TrainingState(recipe, device)
    state.load(None, "bench")
    loader = stack.enter_context(open_loader(recipe, hr, sr, start, device=device, label="bench"))
    run = RunFolder(folder, recipe, resume=False)
    telemetry = stack.enter_context(Telemetry(run, loader, [], device, start, "bench"))
    step = Step(state.network, state.updater, recipe, state.precision, device, loader.planner.count)

    def work() -> None:
        batch = next(loader)
        loss, skip = step(batch, learning_rate_at(recipe.optimizer, batch.step, steps))
        telemetry.add(batch.step, loss, skip)

    return work


def bare(recipe: Config, device: str) -> Work:
    """The same compiled network on fixed tensors, with an optimizer."""
    network = build(recipe.model, recipe.scale).to(device)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    side = recipe.data.patch
    lr, hr = (
        torch.rand(recipe.train.batch, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        for size in (side, recipe.scale * side)
    )
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True)

    def loss_of(lr: Tensor, hr: Tensor) -> Tensor:
        return nn.functional.l1_loss(network(lr) * 255, hr * 255)

    compiled = torch.compile(loss_of, fullgraph=True, dynamic=False)

    def work() -> None:
        compiled(lr, hr).backward()
        optimizer.step()
        optimizer.zero_grad()

    return work


class SubImages(Dataset[tuple[Tensor, ...]]):
    """HR and SR sub-images from PNG files, each with its LR by Pillow, as float tensors."""

    def __init__(self, folder: Path, recipe: Config) -> None:
        self.folder, self.scale, self.patch = folder, recipe.scale, recipe.data.patch

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        side = self.scale * self.patch
        left, top = torch.randint(0, SIDE - side + 1, (2,)).tolist()
        turn = list(Image.Transpose)[int(torch.randint(7, ()))]
        made = []
        for kind in ("hr", "sr"):
            with Image.open(self.folder / kind / f"{index % 32}.png") as image:
                patch = image.convert("RGB").crop((left, top, left + side, top + side)).transpose(turn)
            lr = patch.resize((self.patch, self.patch), Image.Resampling.BICUBIC)
            made += [torch.from_numpy(np.array(one)).permute(2, 0, 1).float() / 255 for one in (patch, lr)]
        return tuple(made)


def field(recipe: Config, pictures: Path, device: str) -> Work:
    """The field's loop with ECO's blend written in Python."""
    network = build(recipe.model, recipe.scale).to(device)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    batches = iter(DataLoader(SubImages(pictures, recipe), batch_size=recipe.train.batch, num_workers=2))
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


def convolution(device: str) -> tuple[Work, float]:
    """Forward and backward of one 3x3 convolution of EDSR-baseline's body, and its work."""
    layer = nn.Conv2d(64, 64, 3, padding=1).to(device)
    layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    x = torch.randn(16, 64, 48, 48, device=device)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = torch.randn_like(x.detach())

    def work() -> None:
        for _ in range(8):
            layer(x).backward(y)

    return work, 8 * 6 * 9 * 64**2 * 16 * 48**2


def matmul(device: str) -> tuple[Work, float]:
    """A large float32 matrix product, and its work."""
    first, second = torch.randn(2, 2048, 2048, device=device)
    return lambda: torch.mm(first, second), 2 * 2048**3


@pytest.mark.parametrize("name", ROUNDS)
def test_step(benchmark: BenchmarkFixture, name: str, pictures: Path, tmp_path: Path) -> None:
    """All ways in turn."""
    device = pick_device("auto")
    recipe = config.load(name)
    rounds, steps = ROUNDS[name]
    peaks = {"convolution": convolution(device), "matmul": matmul(device)}
    seconds: dict[str, list[float]] = {way: [] for way in ("whole", "bare", "field", *peaks)}
    with ExitStack() as stack:
        ways = {"whole": whole(recipe, pictures, device, tmp_path / "run", stack)}  # resets the compiler: comes first
        ways |= {"bare": bare(recipe, device), "field": field(recipe, pictures, device)}
        ways |= {way: work for way, (work, _) in peaks.items()}

        def measured() -> None:
            for way, work in ways.items():
                seconds[way].append(_time(work, 1 if way in peaks else steps, device))
                if way == "field":
                    time.sleep(SETTLE)

        benchmark.pedantic(measured, rounds=rounds, warmup_rounds=2)
    for values in seconds.values():
        del values[:2]  # of the warm-up

    flops = training_flops(build(recipe.model, recipe.scale), recipe.data.patch) * recipe.train.batch
    rates = {way: [work / value / 1e9 for value in seconds[way]] for way, (_, work) in peaks.items()}
    rates["whole"] = [flops / value / 1e9 for value in seconds["whole"]]
    best = [max(pair) for pair in zip(rates["convolution"], rates["matmul"], strict=True)]
    result = {
        "seconds_per_step": statistics.median(seconds["whole"]),
        "whole_over_bare": _ratio(seconds["whole"], seconds["bare"]),
        "field_over_whole": _ratio(seconds["field"], seconds["whole"]),
        "share_of_peak": _ratio(rates["whole"], best),
        **{f"gflops_{way}": statistics.median(values) for way, values in rates.items()},
    }
    benchmark.extra_info.update(result)
    print(f"\n{name}\n" + "\n".join(f"{key}: {value:.3f}" for key, value in result.items()))


def _ratio(first: Sequence[float], second: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(first, second, strict=True))


def _time(work: Work, times: int, device: str) -> float:
    began = time.perf_counter()
    for _ in range(times):
        work()
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
    return (time.perf_counter() - began) / times
