"""The training loop: one network, one objective, one run folder, on one or many devices.

    eco-fast train                                                   the quick start
    eco-fast train edsr_baseline_x2_eco --data.train DIV2K_train_HR
    eco-fast train --run runs/quickstart --resume
    torchrun --nproc-per-node 8 -m -- eco_fast train edsr_x2_eco --run runs/edsr

`pipeline.py` runs it for the teacher, the student and the baseline; `step.py` is what happens in a step.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from torch._dynamo.exc import BackendCompilerFailed
from torch._inductor.exc import CppCompileError, InductorError

from eco_fast.data.batch import BatchPlanner
from eco_fast.data.open_loader import open_loader
from eco_fast.data.sources import ImageSource
from eco_fast.models import Network
from eco_fast.training.checkpoints import Checkpoints, load_state, settle
from eco_fast.training.forecast import Forecast
from eco_fast.training.memory import explain_oom, room_beside
from eco_fast.training.micro_batch import settle_micro_batch
from eco_fast.training.optim.optimizer_step import OptimizerStep
from eco_fast.training.pinned import contents_of, contents_of_file, pin, pin_sets
from eco_fast.training.run_folder import RunFolder, check_checkpoint
from eco_fast.training.signals import StoppedBySignal, StopSignal
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.step_graph import choose_recorder
from eco_fast.training.telemetry import Telemetry
from eco_fast.training.validation import Validation, ValidationSets
from eco_fast.utils import distributed
from eco_fast.utils.device import pick_device, why_not_compile

MAX_SKIPPED_IN_ROW = 100


class Repetition(NamedTuple):
    """A part of a training that is made again, to be compared; see `verify/`."""

    end: int
    """The step that it ends at, with a checkpoint."""
    validated: frozenset[int] | None
    """The steps after which to validate, where the clock had chosen them; None: as the recipe says."""


def train_network(
    run: RunFolder,
    hr: ImageSource,
    sr: ImageSource | None,
    sets: ValidationSets,
    label: str = "train",
    *,
    profile: bool = False,
    forecast: Forecast | None = None,
    repetition: Repetition | None = None,
) -> Network:
    """Train to the end of the run's recipe, from the last checkpoint if there is one.

    `hr` are the images, pinned by the caller; `sr` the centroids, where the objective needs them; `label` precedes
    every line; `profile` writes a trace of a few steps; `forecast` knows of the other trainings; `repetition`: how far.

    Returns:
        The trained network (the running average of its weights, where the recipe keeps one), in evaluation mode.

    Raises:
        ValueError: the run cannot go on; says why.
        StoppedBySignal: a signal stopped it, with a checkpoint.
    """
    config, train, steps = run.config, run.config.train, run.config.train.steps
    forecast, (until, validated) = forecast or Forecast(), repetition or (steps, None)
    state = take_up(run, sr, sets, label)
    if state.start == steps:
        return state.result.eval()

    with (
        explain_oom(train),
        explain_compiler(),
        open_loader(config, hr, sr, state.start, state.device, room=room_beside(state), label=label) as loader,
        Telemetry(run, loader, hr.entries, state, label, profile=profile) as telemetry,
        StopSignal.heard() as stop,
        Checkpoints(run.checkpoints, config) as checkpoints,
    ):
        step = make_step(state, loader.planner, telemetry, sets)
        validation = Validation(state, sets, telemetry, at=validated)
        for batch in islice(loader, until - state.start):
            step(batch)
            telemetry.add(batch.step)
            done, signal, last = batch.step + 1, stop.requested(), batch.step + 1 == steps
            forecast.add(done, validation, checkpoints, telemetry)
            if last or done % train.log_every == 0:
                telemetry.report(done)
                check_progress(state.updater)
            improved = validation.due(done) and validation.run(done)
            if improved or done == until or signal or done % train.checkpoint_every == 0:
                checkpoints.save(state.result, done, state.state_dict(), best=improved)
                telemetry.restart_clock(done)
            checkpoints.check()
            if signal:
                checkpoints.wait()
                raise StoppedBySignal(signal)
            telemetry.stopwatch.mark("data")
            forecast.mark()
    distributed.all_gather(None)  # the files are there, for all
    forecast.compare(state.device, label)
    return state.result.eval()


def take_up(run: RunFolder, sr: ImageSource | None, sets: ValidationSets, label: str) -> TrainingState:
    """What the training goes on from, with the run folder as it was then.

    Arguments are `train_network`'s.

    Raises:
        ValueError: there is no whole state, or what the run depends on has changed since it began; names it.
    """
    config = run.config
    found = load_state(run.checkpoints)
    saved = None if found is None else found.state
    if saved is not None:
        check_checkpoint(saved["config"], config, run.checkpoints)
    if saved is None or saved["step"] < config.train.steps:
        if sr is not None:
            pin(run.folder, "centroids", contents_of(sr))
        pin_sets(run.folder, sets.images, sets.monitored)
    if saved is None and config.model.start_from:
        pin(run.folder, "weights to start from", contents_of_file(Path(config.model.start_from)))
    state = TrainingState(config, pick_device(config.train.device), saved, label)
    run.rewind(state.start)
    if found is not None:
        distributed.on_rank0(lambda: settle(run.checkpoints, found, state.result))
    return state


def make_step(state: TrainingState, planner: BatchPlanner, telemetry: Telemetry, sets: ValidationSets) -> TrainStep:
    """The step of a training; says what the recipe does not: how its batch is split, and what it does without."""
    config, train, device, label = state.config, state.config.train, state.device, telemetry.label
    recorder, why_no_graph = choose_recorder(train, config.optimizer, device)
    step = TrainStep(state, planner.count, telemetry.stopwatch.mark, recorder)
    if train.micro_batch == "auto":
        settle_micro_batch(step, state, planner, sets, telemetry.run.folder, label)
    world, parts = distributed.world_size(), len(step.micro_batches)
    if world > 1 or parts > 1:
        each = f"{step.micro_batches[-1].stop} patches each, in {parts} part{'s' if parts > 1 else ''}"
        print(f"{label} batch {train.batch_size}: {world} process{'es' if world > 1 else ''}, {each}", flush=True)
    if why_no_graph is not None:
        print(f"{label} steps are not recorded as a CUDA graph: {why_no_graph}", flush=True)
    if train.compile and (reason := why_not_compile(device)):
        print(f"not compiled: {reason}; the run is slower, its results are the same up to rounding", flush=True)
    return step


def check_progress(updater: OptimizerStep) -> None:
    """Stop a run that no longer learns.

    Raises:
        ValueError: too many steps in a row were skipped.
    """
    updater.check_places()
    if (count := int(updater.counters.skipped_in_row.item())) >= MAX_SKIPPED_IN_ROW:
        raise ValueError(
            f"the last {count} steps were skipped: their loss or gradients were not finite, or the loss exceeded "
            "optimizer.spike_factor times the last accepted one; lower optimizer.learning_rate and go on from the "
            "last checkpoint"
        )


@contextmanager
def explain_compiler() -> Iterator[None]:
    """Let what torch.compile raises be one sentence.

    Raises:
        ValueError: something could not be compiled; says what to do.
    """
    try:
        yield
    except (BackendCompilerFailed, InductorError, CppCompileError) as error:
        lines = [line.strip() for line in str(error).splitlines()]
        reason = next((line for line in lines if "error:" in line.lower()), lines[0] if lines else type(error).__name__)
        raise ValueError(
            f"torch.compile failed ({reason[:300]}); --train.compile false trains without it, slower, to the same "
            "result up to rounding"
        ) from error
