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
from dataclasses import dataclass, replace
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
from eco_fast.training.micro_batch import made_up
from eco_fast.training.pipeline import Pipeline
from eco_fast.training.precision import choose_precision
from eco_fast.training.profiling import GIGA, measured_peak, time_of
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
    print(f"{'time':<9} {Rehearsal(config, pipeline.device, cost).in_words(folder)}", flush=True)


@dataclass(frozen=True)
class Rehearsal:
    """What the trainings of a run take on a device."""

    config: Config
    """The run's recipe."""
    device: str
    cost: Cost

    def in_words(self, folder: Path) -> str:
        """What is left to train in a run's folder: time, energy, price, memory, and what that was measured on."""
        if self.config.data.source == "files":
            return "unknown for data.source=files; the run says it after its first steps"
        left = self.trainings_left(folder)
        if not left:
            return "nothing is left to train"
        try:
            measured, how = self.measure()
        except ValueError as error:
            return f"unknown: {error}"
        seconds = {name: measured.start + measured.seconds(one.train, done) for name, (one, done) in left.items()}
        each = ", ".join(f"{name} {duration_in_words(spent)}" for name, spent in seconds.items())
        return f"{measured.told(sum(seconds.values()), self.config.train.price_per_hour)} to train ({each}); {how}"

    def trainings_left(self, folder: Path) -> dict[str, tuple[Config, int]]:
        """The trainings of the run that have not ended, by stage: recipe, and steps that are made."""
        config = self.config
        stages = {"teacher": (config.self_teacher, folder / "teacher"), "train": (config, folder)}
        if not config.needs_centroids or config.teacher.checkpoint != "self" or config.data.centroids:
            del stages["teacher"]
        if config.train.baseline:
            stages["baseline"] = (config, folder / "baseline")
        made = {name: (one, steps_done(where) or 0) for name, (one, where) in stages.items()}
        return {name: (one, done) for name, (one, done) in made.items() if done < one.train.steps}

    def measure(self) -> tuple[Measured, str]:
        """What a training takes, and in words how that was found.

        Raises:
            ValueError: it cannot be trained; one sentence.
        """
        precision = choose_precision(self.config.train, self.device)
        peak = measured_peak(self.device, precision.dtype or torch.float32)
        step = 6 * self.cost.multiply_adds * self.config.train.batch_size / peak
        return self._from_one_patch() if (FIRST + TIMED) * step > PATIENCE else self._from_steps()

    def _from_steps(self) -> tuple[Measured, str]:
        """From a training of a few steps."""
        model = self.config.model.model_copy(update={"start_from": ""})
        compiles = self.config.train.compile or self.device != "cpu"
        with tempfile.TemporaryDirectory() as name, redirect_stdout(io.StringIO()):
            folder = Path(name)
            images = self._random_images(folder)
            sets, scored = self._largest_validation_image()
            own = tuple(one for one in self.config.train.trackers if one == "tensorboard")  # others tell the world
            for steps in [1, FIRST + TIMED] if compiles else [FIRST + TIMED]:
                changed = {"steps": steps, "trackers": own, "validate_every": FIRST + TIMED, "keep_checkpoints": 1}
                train = self.config.train.model_copy(update=changed)
                short = self.config.model_copy(update={"model": model, "train": train})
                forecast = Forecast(least=FIRST + TIMED)
                with RunFolder(folder / f"{steps} steps", short, resume=False) as run:
                    centroids = images if self.config.needs_centroids else None
                    used = sets if steps > 1 else ValidationSets()
                    train_network(run, images, centroids, used, "rehearsal", forecast=forecast)
                settled = folder / f"{steps} steps" / MICRO_BATCH
                at_once = f", {json.loads(settled.read_text())['patches']} patches at once" if settled.exists() else ""
        measured = forecast.measured
        assert measured is not None, "it has as many steps as that takes"
        how = f"{1000 * measured.step:.3g} ms a step{at_once}, measured on random images"
        return replace(measured, validation=measured.validation * scored), how

    def _from_one_patch(self) -> tuple[Measured, str]:
        """From the passes of one patch, not compiled: where steps take too long to be rehearsed."""
        train = self.config.train.model_copy(update={"batch_size": 1, "micro_batch": 0})
        model = self.config.model.model_copy(update={"start_from": ""})
        single = self.config.model_copy(update={"model": model, "train": train})
        with redirect_stdout(io.StringIO()), torch.compiler.set_stance("force_eager"):
            state = TrainingState(single, self.device, None, "rehearsal")
            step, samples = TrainStep(state, 1), made_up(BatchPlanner(single, [(SIDE, SIDE)]), self.device)
            spent = min(time_of(lambda: step.try_part(samples, 1), 1, self.device) for _ in range(2))
        measured = Measured(0.0, spent * self.config.train.batch_size, 0.0, 0.0, None, self.cost.memory / GIGA)
        return measured, f"{spent:.3g} s for one patch, not compiled, stand for the rest; validation is left out"

    def _random_images(self, folder: Path) -> Store:
        """A store of random images that a patch fits into."""
        side = max(SIDE, 2 * self.config.scale * self.config.data.patch)
        for index in range(IMAGES):
            pixels = np.random.default_rng(index).integers(0, 256, (side, side, 3), dtype=np.uint8)
            write_png(folder / "images" / f"{index}.png", pixels)
        return prepare([str(folder / "images")], folder / "store")

    def _largest_validation_image(self) -> tuple[ValidationSets, float]:
        """The largest of the images that the run validates on, and how often all of them have its pixels."""
        data = self.config.data
        if not data.validation:
            return ValidationSets(), 0.0
        try:
            found = {name: path for source in (data.validation, data.monitor) if source
                     for name, path in find_images(source).items()}  # fmt: skip
        except ValueError:  # which the line about them says
            return ValidationSets(), 0.0
        sizes = {}
        for name, path in found.items():
            with Image.open(path) as image:  # reads the header alone
                sizes[name] = math.prod(image.size)
        largest = max(sizes, key=sizes.__getitem__)
        return ValidationSets({largest: read_image(found[largest])}), sum(sizes.values()) / sizes[largest]
