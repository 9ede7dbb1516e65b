"""`eco-fast train --dry-run`: what a run would do, and what it would take, by a rehearsal that leaves nothing behind.

The rehearsal is a training of a few steps in a temporary folder, on random images: the recipe's network, loader,
precision and micro-batch on this device, and one validation image. It is made twice where something is compiled, for
the compilers' caches keep the first one's work for the run. Where even a few steps would take minutes, the passes of
one patch stand for them.
"""

import io
import json
import math
import tempfile
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from eco_fast.config import Config
from eco_fast.data.batch import BatchPlanner
from eco_fast.data.folders import find_images
from eco_fast.data.images import read_image, write_png
from eco_fast.data.prepare import prepare
from eco_fast.data.store import Store
from eco_fast.training.cost import Cost, estimate
from eco_fast.training.forecast import FIRST, TIMED, Forecast, Measured
from eco_fast.training.loop import train_network
from eco_fast.training.micro_batch import made_up, seconds_of
from eco_fast.training.pipeline import Pipeline
from eco_fast.training.precision import choose_precision
from eco_fast.training.profiling import GIGA, measured_peak
from eco_fast.training.run_folder import MICRO_BATCH, RunFolder
from eco_fast.training.stage_state import state_of_images, steps_done
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.validation import ValidationSets
from eco_fast.utils.files import size_in_words
from eco_fast.utils.progress import duration_in_words

PATIENCE = 60.0  # seconds that the steps of a rehearsal may take at the device's peak
IMAGES, SIDE = 4, 512  # random images, and their side where that is enough for a patch


def dry_run(config: Config, folder: Path, *, resume: bool) -> None:
    """Print what `run_recipe` with the same arguments would cost, and the state of each of its stages.

    Raises:
        ValueError: as `Pipeline`; or the device cannot do the recipe's precision.
    """
    pipeline = Pipeline(config, folder, resume=resume)
    train, patch = config.train, config.data.patch
    precision = choose_precision(train, pipeline.device)
    cost = estimate(config, pipeline.device, precision)
    lines = {
        "recipe": config.description,
        "network": f"{config.model.name} x{config.scale}, {cost.parameters:,} parameters, {cost.multiply_adds:,} "
        f"multiply-adds for a patch of {patch}x{patch} LR pixels",
        "training": f"{config.objective.name}, {config.objective.loss}; {config.optimizer.name}, "
        f"{config.optimizer.learning_rate:.2e}, {config.optimizer.schedule}; {train.steps:,} steps of "
        f"{train.batch_size} patches, {train.steps * train.batch_size:,} patches in all",
        "memory": f"{size_in_words(cost.memory)} on {pipeline.device}, for {cost.at_once} patches at once in "
        f"{precision.name}: {size_in_words(cost.copies * cost.weights)} of weights, gradients and optimizer, "
        f"{size_in_words(cost.activations)} of activations at most",
        "validate": state_of_images(config.data.validation),
        **{stage.name: stage.state() for stage in pipeline.stages},
    }
    for name, text in lines.items():
        print(f"{name:<9} {text}", flush=True)
    print(f"{'time':<9} {time_in_words(config, folder, pipeline.device, cost)}", flush=True)


def time_in_words(config: Config, folder: Path, device: str, cost: Cost) -> str:
    """What the trainings that are left will take: time, energy, price, memory, and what that was measured on."""
    if config.data.source == "files":
        return "unknown for data.source=files; the run says it after its first steps"
    left = trainings_left(config, folder)
    if not left:
        return "nothing is left to train"
    try:
        measured, how = rehearse(config, device, cost)
    except ValueError as error:
        return f"unknown: {error}"
    seconds = {name: measured.start + measured.seconds(one.train, done) for name, (one, done) in left.items()}
    each = ", ".join(f"{name} {duration_in_words(spent)}" for name, spent in seconds.items())
    return f"{measured.told(sum(seconds.values()), config.train.price_per_hour)} to train ({each}); {how}"


def trainings_left(config: Config, folder: Path) -> dict[str, tuple[Config, int]]:
    """The trainings of a run that have not ended, by stage: recipe, and steps that are made."""
    stages = {"teacher": (config.self_teacher, folder / "teacher"), "train": (config, folder)}
    if not config.needs_centroids or config.teacher.checkpoint != "self" or config.data.centroids:
        del stages["teacher"]
    if config.train.baseline:
        stages["baseline"] = (config, folder / "baseline")
    made = {name: (one, steps_done(where) or 0) for name, (one, where) in stages.items()}
    return {name: (one, done) for name, (one, done) in made.items() if done < one.train.steps}


def rehearse(config: Config, device: str, cost: Cost) -> tuple[Measured, str]:
    """What a training takes on this device, and in words how that was found.

    Raises:
        ValueError: it cannot be trained; one sentence.
    """
    precision = choose_precision(config.train, device)
    config = config.model_copy(update={"model": config.model.model_copy(update={"start_from": ""})})
    step = 6 * cost.multiply_adds * config.train.batch_size / measured_peak(device, precision.dtype or torch.float32)
    if (FIRST + TIMED) * step > PATIENCE:
        return from_one_patch(config, device, cost)
    with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()):
        folder = Path(name)
        images = random_images(folder, config)
        sets, scored = largest_validation_image(config)
        for steps in [1, FIRST + TIMED] if config.train.compile or device != "cpu" else [FIRST + TIMED]:
            changed = {"steps": steps, "trackers": (), "validate_every": FIRST + TIMED, "keep_checkpoints": 1}
            short = config.model_copy(update={"train": config.train.model_copy(update=changed)})
            forecast = Forecast(least=FIRST + TIMED)
            with RunFolder(folder / f"{steps} steps", short, resume=False) as run:
                centroids = images if config.needs_centroids else None
                used = sets if steps > 1 else ValidationSets()
                train_network(run, images, centroids, used, "rehearsal", forecast=forecast)
            settled = folder / f"{steps} steps" / MICRO_BATCH
            at_once = f", {json.loads(settled.read_text())['patches']} patches at once" if settled.exists() else ""
    measured = forecast.measured
    assert measured is not None, "it has as many steps as that takes"
    how = f"{1000 * measured.step:.3g} ms a step{at_once}, measured on random images"
    return replace(measured, validation=measured.validation * scored), how


def from_one_patch(config: Config, device: str, cost: Cost) -> tuple[Measured, str]:
    """The same from forward and backward pass of one patch, not compiled: where steps take too long to be rehearsed."""
    single = config.model_copy(update={"train": config.train.model_copy(update={"batch_size": 1, "micro_batch": 0})})
    with redirect_stdout(io.StringIO()), torch.compiler.set_stance("force_eager"):
        state = TrainingState(single, device, None, "rehearsal")
        step, samples = TrainStep(state, 1), made_up(BatchPlanner(single, [(SIDE, SIDE)]), device)
        spent = min(seconds_of(lambda: step.try_part(samples, 1), device) for _ in range(2))
    measured = Measured(0.0, spent * config.train.batch_size, 0.0, 0.0, None, cost.memory / GIGA)
    return measured, f"{spent:.3g} s for one patch, not compiled, stand for the rest; validation is left out"


def random_images(folder: Path, config: Config) -> Store:
    """A store of random images that a patch fits into."""
    side = max(SIDE, 2 * config.scale * config.data.patch)
    for index in range(IMAGES):
        pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
        write_png(folder / "images" / f"{index}.png", pixels)
    return prepare([str(folder / "images")], folder / "store")


def largest_validation_image(config: Config) -> tuple[ValidationSets, float]:
    """The largest of the images that a training is validated on, and how often all of them have its pixels."""
    try:
        found = {name: path for source in (config.data.validation, config.data.monitor) if source
                 for name, path in find_images(source).items()}  # fmt: skip
    except ValueError:  # which the line about them says
        return ValidationSets(), 0.0
    if not config.data.validation:
        return ValidationSets(), 0.0
    sizes = {}
    for name, path in found.items():
        with Image.open(path) as image:  # reads the header alone
            sizes[name] = math.prod(image.size)
    largest = max(sizes, key=sizes.__getitem__)
    return ValidationSets({largest: read_image(found[largest])}), sum(sizes.values()) / sizes[largest]
