"""The training loop: one network, one objective, one run folder, on one or many devices.

    eco-fast train                                                   the quick start
    eco-fast train edsr_baseline_x2_eco --set data.train='["DIV2K_train_HR"]'
    eco-fast train --run runs/quickstart --resume
    torchrun --nproc-per-node 8 -m -- eco_fast train edsr_x2_eco --run runs/edsr

`pipeline.py` runs it for the teacher, the student and the twin; `step.py` is what happens in a step.
"""

import copy
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eco_fast.config import Config
from eco_fast.data.images import Pixels
from eco_fast.data.open_loader import Pictures, open_loader
from eco_fast.evaluation.benchmarks import Sets
from eco_fast.evaluation.evaluate import finite, score_network
from eco_fast.evaluation.metrics import average
from eco_fast.models import Network, build, warm_start
from eco_fast.training.checkpoints import Checkpoints, load_state
from eco_fast.training.memory import explain_oom
from eco_fast.training.optim.optimizer_step import Updater, learning_rate_at
from eco_fast.training.precision import GradientScale, Precision, set_precision
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.signals import StoppedBySignal, StopSignal
from eco_fast.training.step import Step
from eco_fast.training.telemetry import Telemetry
from eco_fast.utils import distributed
from eco_fast.utils.device import pick_device, tune_malloc, why_not_compile

MAX_SKIPPED_IN_ROW = 100
RULE_OF_THUMB = "a teacher helps only if it scores above what the student reaches without it"  # docs/evidence.md


def train_network(
    run: RunFolder,
    hr: Pictures,
    sr: Pictures | None,
    validation: Mapping[str, Pixels],
    label: str = "train",
    *,
    watched: Sets | None = None,
    teacher_psnr: float = math.inf,
    profile: bool = False,
) -> Network:
    """Train to the end of the recipe, from the last checkpoint if there is one.

    Args:
        run: the folder, with the recipe.
        hr: the pictures.
        sr: their centroids, where the objective needs them.
        validation: HR pictures by name, scored every `validate_every` steps.
        label: precedes every progress line.
        watched: further sets, which are scored with them and choose nothing.
        teacher_psnr: PSNR-Y of the centroids' teacher over the validation pictures, in dB.
        profile: write a trace of a few steps into the run folder.

    Returns:
        The trained network (the running average of its weights, where the recipe keeps one), in evaluation mode.

    Raises:
        ValueError: the run cannot go on; says why.
        StoppedBySignal: a signal stopped it, with a checkpoint.
    """
    config, steps = run.config, run.config.train.steps
    device = pick_device(config.train.device)
    state = TrainingState(config, device, load_state(run.checkpoints, device), label)
    start = state.start
    if distributed.is_main_process():
        run.rewind(start)
    if start == steps:
        return state.result.eval()

    names = [entry.name for entry in hr.entries]
    part = {"rank": distributed.rank(), "world": distributed.world_size()}
    with (
        explain_oom(config.train),
        open_loader(config, hr, sr, start, device=device, label=label, **part) as loader,
        Telemetry(run, loader, names, device, start, label, profile=profile) as telemetry,
        StopSignal() as stop,
        Checkpoints(run.checkpoints, config) as checkpoints,
    ):
        if state.telemetry is not None:
            telemetry.load_state_dict(state.telemetry)
        count, mark = loader.planner.count, telemetry.stopwatch.mark
        step = Step(state.network, state.updater, config, state.precision, device, count, mark)
        telemetry.calibrate(state.network, state.precision)
        describe(step, state, config, label)
        for batch in loader:
            learning_rate = learning_rate_at(config.optimizer, batch.step, steps)
            loss, skip = step(batch, learning_rate)
            telemetry.add(batch.step, loss, skip)

            done = batch.step + 1
            last, signal = done == steps, stop.requested()
            if last or done % config.train.log_every == 0:
                alpha = batch.mix.target
                telemetry.report(done, alpha=alpha, learning_rate=learning_rate, skipped=state.updater.skipped)
                check_progress(state.updater)
            improved = False
            if validation and (last or done % config.train.validate_every == 0):
                before = state.best
                improved = validate(state, validation, watched or {}, telemetry, done)
                if before < teacher_psnr <= state.best:
                    telemetry.say(f"warning: passed the teacher's {teacher_psnr:.3f} dB; {RULE_OF_THUMB}")
            if improved or last or signal or done % config.train.checkpoint_every == 0:
                checkpoints.save(state.result, done, state.state_dict(telemetry), best=improved)
                telemetry.restart_clock(done)
            checkpoints.check()
            if signal:
                checkpoints.wait()
                raise StoppedBySignal(signal)
            mark("data")
    distributed.all_gather(None)  # the files are there, for all
    return state.result.eval()


def initial_network(config: Config, *, warm: bool = True) -> tuple[Network, list[str]]:
    """The network that a training begins with, and the names of the weights that its warm start has left fresh.

    Args:
        config: the recipe, whose seed decides the fresh weights.
        warm: take the others from `model.start_from`, where the recipe names one.

    Raises:
        ValueError: the checkpoint to start from cannot be used; names it.
    """
    torch.manual_seed(config.seed)
    network = build(config.model, config.scale)
    start = config.model.start_from
    return network, list(warm_start(network, Path(start))) if warm and start else []


class TrainingState:
    """Everything that a checkpoint holds: the weights, their running average, the optimizer's and the run's course.

    Args:
        config: the recipe.
        device: where it lives.
        saved: a checkpoint's state to continue from, or None to begin.
        label: precedes the line that says so.
    """

    def __init__(self, config: Config, device: str, saved: dict[str, Any] | None, label: str) -> None:
        self.config, self.device = config, device
        tune_malloc(device)
        self.precision: Precision = set_precision(config.train, device)
        self.network, kept = initial_network(config, warm=saved is None)
        if config.model.start_from and saved is None:
            print(
                f"{label} starts from {config.model.start_from}; fresh weights: {', '.join(kept) or 'none'}", flush=True
            )
        self.network.to(device=device, memory_format=self.network.memory_format)  # type: ignore[call-overload]
        self.averaged: Network | None = None
        averages: list[Tensor] = []
        if config.train.ema_decay:
            self.averaged = copy.deepcopy(self.network).requires_grad_(requires_grad=False)
            pairs = zip(self.averaged.parameters(), self.network.parameters(), strict=True)
            averages = [average for average, parameter in pairs if parameter.requires_grad]
        self.updater = Updater(
            self.network.parameters(),
            config.optimizer,
            device,
            GradientScale(device) if self.precision.scales_gradients else None,
            averages,
            config.train.ema_decay,
            compiled=config.train.compile,
        )
        self.start, self.best = 0, float("-inf")
        self.telemetry: dict[str, Any] | None = None
        if saved is not None:
            self.start, self.best, self.telemetry = saved["step"], saved["best"], saved["telemetry"]
            self.network.load_state_dict(saved["network"])
            if self.averaged is not None:
                self.averaged.load_state_dict(saved["averaged"])
            self.updater.load_state_dict(saved["updater"])
            print(f"{label} continues at step {self.start} of {config.train.steps}", flush=True)

    @property
    def result(self) -> Network:
        """The network that is scored and kept for use."""
        return self.network if self.averaged is None else self.averaged

    def state_dict(self, telemetry: Telemetry) -> dict[str, Any]:
        """What the training continues from, apart from the step."""
        state: dict[str, Any] = {"best": self.best, "network": self.network.state_dict()}
        if self.averaged is not None:
            state["averaged"] = self.averaged.state_dict()
        return {**state, "updater": self.updater.state_dict(), "telemetry": telemetry.state_dict()}


def validate(
    state: TrainingState, validation: Mapping[str, Pixels], watched: Sets, telemetry: Telemetry, done: int
) -> bool:
    """Score the validation pictures and the watched sets, and report; whether the former's scores are the best."""
    data = state.config.data
    row: dict[str, float | None] = {}
    said = f"step {done}/{state.config.train.steps}"
    for name, images in {**watched, "": validation}.items():
        scored = score_network(
            state.result, images, data.rounding, noise_sigma=data.noise_sigma, draws=1, device=state.device
        )
        scores = average(list(scored.values()))
        suffix = f"/{name}" if name else ""
        row |= {f"{measure}{suffix}": finite(scores)[measure] for measure in ("psnr_y", "ssim_y")}
        said += f"  {name or 'validation'} {scores.psnr_y:.3f} dB  {scores.ssim_y:.4f}"
    state.network.train()
    telemetry.write(done, row)
    telemetry.say(said)
    improved, state.best = scores.psnr_y > state.best, max(scores.psnr_y, state.best)
    return improved


def describe(step: Step, state: TrainingState, config: Config, label: str) -> None:
    """Say what a step is made of, before the first one."""
    train, parts, world = config.train, len(step.parts), distributed.world_size()
    weights = sum(parameter.numel() for parameter in state.network.parameters())
    copies = 4 + (state.averaged is not None)  # weights, gradients and two moments; the average
    print(
        f"{label} batch {train.batch}: {world} process{'es' if world > 1 else ''}, {step.parts[-1].stop} patches each, "
        f"in {parts} part{'s' if parts > 1 else ''}; {train.batch * train.steps:,} patches in all; "
        f"learning rate {config.optimizer.learning_rate:.2e}, {config.optimizer.name}, {state.precision.name}; "
        f"{weights * 4 * copies / 1e6:.0f} MB of weights, gradients and optimizer",
        flush=True,
    )
    if train.compile and (reason := why_not_compile(step.device)):
        print(f"not compiled: {reason}; the run is slower, its results are the same up to rounding", flush=True)


def check_progress(updater: Updater) -> None:
    """Stop a run that no longer learns.

    Raises:
        ValueError: too many steps in a row were skipped.
    """
    if (count := int(updater.skipped_in_row.item())) >= MAX_SKIPPED_IN_ROW:
        raise ValueError(
            f"the last {count} steps were skipped: their loss or gradients were not finite, or the loss exceeded "
            "optimizer.spike_factor times the last accepted one; lower optimizer.learning_rate and go on from the "
            "last checkpoint"
        )
