"""The ways that are timed beside each other.

| way | what is timed |
|---|---|
| whole | the body of the training loop: next batch of the loader, input, network, loss, update, telemetry |
| bare | forward, L1, backward and Adam of the same compiled network on fixed tensors; on a GPU one CUDA graph |
| field | eager, NCHW, PNG sub-images through a DataLoader's workers, blend in Python, `.item()` every step |
"""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from eco_fast.config import Config
from eco_fast.data.loader import Loader
from eco_fast.data.open_loader import open_loader
from eco_fast.models import Network, build, compile_blocks
from eco_fast.models.network import SubPixelConvolution
from eco_fast.training.bench.images import BenchImages, SubImages
from eco_fast.training.bench.timing import recorded
from eco_fast.training.memory import room_beside
from eco_fast.training.micro_batch import settle_micro_batch
from eco_fast.training.precision import choose_precision
from eco_fast.training.profiling import Stopwatch, Work, time_of
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.step_graph import choose_recorder
from eco_fast.training.telemetry import Telemetry
from eco_fast.training.validation import ValidationSets
from eco_fast.utils.device import why_not_compile
from eco_fast.utils.workers import cores

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
MOST_WORKERS = 8
BETWEEN = "between"
"""Stage that no step has: what lies between two of them."""


@dataclass(frozen=True)
class WholeStep:
    """The training step, ready to be timed."""

    work: Work
    loader: Loader[Any]
    watch: Stopwatch
    """Has each stage of the steps that were made."""
    micro_batches: list[slice]


def whole(recipe: Config, images: BenchImages, device: str, folder: Path, stack: ExitStack) -> WholeStep:
    """The body of the training loop, from the middle of the training, where HR and the centroid are both read."""
    start = recipe.train.steps // 2
    state = TrainingState(recipe, device, None, "bench")
    if state.network.memory_format == torch.contiguous_format:
        state.network.register_forward_pre_hook(_make_contiguous)
    sr = images.sr if recipe.needs_centroids else None
    loader = stack.enter_context(
        open_loader(recipe, images.hr, sr, start, device=device, room=room_beside(state), label="bench")
    )
    run = RunFolder(folder, recipe, resume=False)
    telemetry = stack.enter_context(Telemetry(run, loader, [], state, "bench"))
    watch = Stopwatch(device, 0, sys.maxsize)
    recorder, _ = choose_recorder(recipe.train, recipe.optimizer, device)
    step = TrainStep(state, loader.planner.count, watch.mark, recorder)
    if recipe.train.micro_batch == "auto":
        settle_micro_batch(step, state, loader.planner, ValidationSets(), folder, "bench")
    if recorder is None:
        step.loss.network.register_forward_pre_hook(_mark_network(watch))

    def work() -> None:
        watch.mark("data")
        batch = next(loader)
        watch.mark("input")
        step(batch)
        telemetry.add(batch.step)
        watch.mark(BETWEEN)

    return WholeStep(work, loader, watch, step.micro_batches)


def _mark_network(watch: Stopwatch) -> Callable[..., None]:
    """Where the network begins, if the interpreter gets there: not within what is compiled as one."""

    def mark(*_: object) -> None:
        if not torch.compiler.is_compiling():
            watch.mark("network")

    return mark


def _make_contiguous(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    lr, *more = inputs
    return lr.contiguous(), *more


def step_parts(stages: Mapping[str, float]) -> dict[str, float]:
    """The parts of a step, of the stages that `whole` has marked: those that can be told apart."""
    one = {stage: stages.get(stage, 0.0) for stage in ("data", "input", "forward", "network", "backward", "optimizer")}
    if "step" in stages:
        middle = {"recorded step": one["input"] + stages["step"]}
    elif "network" in stages:
        middle = {"input": one["input"] + one["forward"], "network and loss": one["network"] + one["backward"]}
        middle["update"] = one["optimizer"]
    else:
        middle = {"input, network and loss": one["input"] + one["forward"] + one["backward"]}
        middle["update"] = one["optimizer"]
    return {"loader": one["data"], **middle, "telemetry": stages["other"]}


@contextmanager
def in_memory_format(recipe: Config, wanted: str) -> Iterator[None]:
    """Let networks of the recipe's architecture train in a memory format; empty: in their own."""
    with torch.device("meta"):
        architecture: type[Network] = type(build(recipe.model, recipe.scale))
    before = architecture.memory_format
    architecture.memory_format = MEMORY_FORMATS.get(wanted, before)
    try:
        yield
    finally:
        architecture.memory_format = before


def bare(recipe: Config, device: str, micro_batches: Sequence[slice] | None = None) -> Work:
    """The same compiled network on fixed tensors, with an optimizer; the batch in one piece, or in those of `whole`."""
    network = build(recipe.model, recipe.scale).to(device)
    network.to(memory_format=network.memory_format)  # type: ignore[call-overload]
    precision, on_gpu = choose_precision(recipe.train, device), device.startswith("cuda")
    count, side = recipe.train.batch_size, recipe.data.patch
    lr, hr = (
        torch.rand(count, 3, size, size, device=device).contiguous(memory_format=network.memory_format)
        for size in (side, recipe.scale * side)
    )
    parts = micro_batches or [slice(0, count)]
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4, fused=True, capturable=on_gpu)

    def loss_of(lr: Tensor, hr: Tensor) -> Tensor:
        with precision.autocast(lr.device.type):
            prediction = network(lr)
        return nn.functional.l1_loss(prediction * 255, hr * 255)

    compiled = loss_of
    if recipe.train.compile and lr.device.type in network.compiled_on and why_not_compile(device) is None:
        if network.repeated_block is None:
            compiled = torch.compile(loss_of, fullgraph=True, dynamic=False)
        else:
            compile_blocks(network)

    def work() -> None:
        for part in parts:
            compiled(lr[part], hr[part]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return recorded([work]) if on_gpu else work


def field(recipe: Config, folders: Sequence[Path], device: str) -> Work:
    """The field's loop with ECO's blend written in Python; `folders` hold the sub-images of HR and of the centroids."""
    network = build(recipe.model, recipe.scale).to(device)
    plain_upsampling(network)
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-4)
    dataset = SubImages(folders, recipe.scale, recipe.data.patch)
    workers = min(cores(), MOST_WORKERS)
    batches = iter(DataLoader(dataset, batch_size=recipe.train.batch_size, num_workers=workers))
    alpha = 0.5

    def work() -> float:
        hr, lr_of_hr, sr, lr_of_sr = (image.to(device) for image in next(batches))
        lr, target = alpha * lr_of_hr + (1 - alpha) * lr_of_sr, alpha * hr + (1 - alpha) * sr
        loss = nn.functional.l1_loss(network(lr) * 255, target * 255)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
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


_APART: dict[str, Work] = {}
"""Filled in the process apart alone."""


def start_apart(way: Callable[..., Work], *arguments: object) -> None:
    """Begin, in a process of its own, what `seconds_apart` times."""
    _APART["work"] = way(*arguments)


def seconds_apart(times: int, device: str) -> float:
    """`time_of` what `start_apart` began."""
    return time_of(_APART["work"], times, device)
