"""`eco-fast train`: from images to a table, stage by stage; every finished stage is reused.

prepare -> teacher (a vanilla run, or a given checkpoint) -> centroids -> train -> baseline -> evaluate

RUN/            the student's run folder, and the results
RUN/store/      the decoded images and centroids, unless data.store names a folder
RUN/teacher/    the run folder of teacher.checkpoint = "self"
RUN/baseline/   the run folder of the network that is trained on real pairs alone
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from eco_fast.config import Config, Data, Objective, Train
from eco_fast.data.images import Pixels
from eco_fast.data.noise import noise_metadata
from eco_fast.data.open_loader import choose_loader
from eco_fast.data.sources import ImageSource
from eco_fast.evaluation.benchmarks import images_by_set, read_images, read_sets
from eco_fast.evaluation.evaluate import mean_scores
from eco_fast.evaluation.scoring import ImagePair, pairs_of, score_bicubic, score_network
from eco_fast.models import Network
from eco_fast.training.checkpoints import weights_path
from eco_fast.training.cost import network_without_memory
from eco_fast.training.crops import SAMPLES, cut_crops, write_crops
from eco_fast.training.figures import draw_curves, draw_samples, show_summary
from eco_fast.training.forecast import Forecast
from eco_fast.training.loop import train_network
from eco_fast.training.optim.muon import check_muon_recipe
from eco_fast.training.pinned import contents_of, contents_of_file, pin, pin_names
from eco_fast.training.precision import choose_precision
from eco_fast.training.report.page import report_if_possible
from eco_fast.training.report.run_report import write_run_report
from eco_fast.training.run_folder import CHECKPOINTS, RunFolder
from eco_fast.training.signals import stops_cleanly
from eco_fast.training.stage_clock import StageClock
from eco_fast.training.stage_state import (
    state_of_centroids,
    state_of_images,
    state_of_store,
    state_of_training,
    steps_done,
)
from eco_fast.training.step_graph import choose_recorder
from eco_fast.training.trackers import check_trackers
from eco_fast.training.training_data import (
    LoadedTeacher,
    TrainingImages,
    load_teacher,
    obtain_centroids,
    open_images,
    train_teacher,
)
from eco_fast.training.validation import ValidationSets, validation_pairs, validation_scores
from eco_fast.utils import distributed
from eco_fast.utils.device import device_name, pick_device
from eco_fast.utils.files import write_json
from eco_fast.utils.lasting import lasting_output


@dataclass(frozen=True)
class Stage:
    """One stage of a recipe: `train` runs it, `--dry-run` prints its state."""

    name: str
    state: Callable[[], str]
    """What it would do, or has done."""
    run: Callable[[], None] | None = None
    """Does what is left of it; None where there is nothing to do."""


class Pipeline:
    """The stages of a recipe, in order; what one of them makes, the next ones find here.

    Args:
        config: the recipe.
        folder: the run's.
        resume: continue what is there.
        profile: write a trace of a few steps of the student.

    Raises:
        ValueError: there is no such device, or the network's outputs cannot be scored.
    """

    sets: ValidationSets
    images: TrainingImages
    centroids: ImageSource | None = None
    runs: dict[str, RunFolder]
    """Those that have been trained, the student's first."""
    claimed: ExitStack
    """Keeps them this process's."""

    def __init__(self, config: Config, folder: Path, *, resume: bool = False, profile: bool = False) -> None:
        check_scored(config.data, config.objective, config.train)
        check_trackers(config.train.trackers)
        self.config, self.folder, self.resume, self.profile = config, folder, resume, profile
        self.device = pick_device(config.train.device)
        self.claimed = ExitStack()
        self.teacher: LoadedTeacher | None = None
        self.networks: dict[str, Network] = {}
        self.summary: dict[str, Any] = {"scale": config.scale, "steps": config.train.steps}
        self.stages = [Stage("prepare", lambda: state_of_store(config.data, folder), self._prepare)]
        if not config.needs_centroids:
            self.stages.append(Stage("teacher", lambda: f"not needed for {config.objective.name}"))
        elif config.data.source == "files" and config.data.centroids:
            self.stages.append(Stage("centroids", lambda: f"not needed: {state_of_images([config.data.centroids])}"))
        else:
            self.stages.append(Stage("teacher", self._state_of_teacher, self._obtain_teacher))
            self.stages.append(Stage("centroids", self._state_of_centroids, self._make_centroids))
        self.stages.append(Stage("train", lambda: state_of_training(config, folder, resume=resume), self._train))
        if config.train.baseline:
            self.stages.append(Stage("baseline", self._state_of_baseline, self._train_baseline))
        scored = config.data.test or config.data.validation
        self.stages.append(Stage("evaluate", lambda: state_of_images(scored), self._evaluate))

    def begin(self) -> None:
        """Claim the run folder, after refusing what cannot end well; reads the images to score and a given teacher.

        Raises:
            ValueError: names what is wrong.
        """
        config, data = self.config, self.config.data
        self.sets = ValidationSets(read_images(data.validation, config.scale), read_sets(data.monitor, config.scale))
        self.test = read_images(data.test, config.scale) or self.sets.images
        if config.teacher.checkpoint != "self" and config.needs_centroids:
            self.teacher = load_teacher(Path(config.teacher.checkpoint), config.scale)
        network = network_without_memory(config.model, config.scale, config.data.patch)
        if config.optimizer.name == "muon":
            check_muon_recipe(config.optimizer, network.body_matrices(), self.device)
        check_start(config.model.start_from, self.folder)
        loader, reason = choose_loader(data, self.device)
        choose_recorder(config.train, config.optimizer, self.device)
        run = self.claimed.enter_context(RunFolder(self.folder, config, resume=self.resume))
        self.runs = {"student": run}
        if self.teacher is not None:
            pin(self.folder, "weights of the teacher", contents_of_file(self.teacher.checkpoint))
        precision = choose_precision(config.train, self.device).name
        print(f"{self.folder} on {device_name(self.device)}, in {precision}", flush=True)
        print(f"loader: {loader}, {reason}", flush=True)

    def _prepare(self) -> None:
        config = self.config
        if config.data.train:
            pin_names(self.folder, config.data.train)
        self.images = open_images(config.data, config.scale, self.folder, needs_centroids=config.needs_centroids)
        self.centroids = self.images.centroid_files
        pin(self.folder, "training images", contents_of(self.images.hr))  # of all trainings

    def _state_of_teacher(self) -> str:
        named, own = Path(self.config.teacher.checkpoint), self.folder / "teacher"
        if self.config.teacher.checkpoint == "self":
            return state_of_training(self.config.self_teacher, own, resume=self.resume)
        return f"{named}{'' if named.is_file() else ' is missing'}"

    def _obtain_teacher(self) -> None:
        if self.teacher is None:
            sets = ValidationSets(self.sets.images)
            own = self.folder / "teacher"
            following = [self.config] * (1 + self.config.train.baseline)
            self.teacher = train_teacher(
                self.config, own, self.images.hr, sets, resume=self.resume, forecast=Forecast(following)
            )

    def _state_of_centroids(self) -> str:
        checkpoint, own = Path(self.config.teacher.checkpoint), self.folder / "teacher"
        if self.config.teacher.checkpoint == "self":
            if (steps_done(own) or 0) < self.config.teacher.steps:
                return "after the teacher"
            checkpoint = weights_path(own / CHECKPOINTS, "last")
        return state_of_centroids(self.config, self.folder, checkpoint)

    def _make_centroids(self) -> None:
        assert self.teacher is not None, "the stage before"
        self.centroids = obtain_centroids(self.config, self.folder, self.images, self.teacher)
        self.networks["teacher"] = self.teacher.network
        if self.sets.images:
            psnr = self._score_as_trained(self.teacher.network)
            if self.config.teacher.checkpoint != "self":  # of which the last validation has said it
                print(f"teacher: {psnr:.3f} dB on the validation images", flush=True)
            self.sets = replace(self.sets, teacher_psnr=psnr)
        self.teacher.network.to("cpu")  # the device's memory is the student's now

    def _train(self) -> None:
        self.networks["student"] = train_network(
            self.runs["student"],
            self.images.hr,
            self.centroids,
            self.sets,
            "student",
            profile=self.profile,
            forecast=Forecast([self.config] * self.config.train.baseline),
        )

    def _state_of_baseline(self) -> str:
        return state_of_training(self.config.vanilla, self.folder / "baseline", resume=self.resume)

    def _train_baseline(self) -> None:
        baseline = RunFolder(self.folder / "baseline", self.config.vanilla, resume=self.resume)
        self.runs["baseline"] = self.claimed.enter_context(baseline)
        sets = replace(self.sets, teacher_psnr=math.inf)
        self.networks["baseline"] = train_network(self.runs["baseline"], self.images.hr, None, sets, "baseline")

    def _evaluate(self) -> None:
        data, test, main = self.config.data, self.test, distributed.is_main_process()
        self.summary |= {"images": list(test), **noise_metadata(data.noise_sigma)}
        if test:
            results = {"bicubic": score_bicubic(self._pairs(test), self.config.scale, data.rounding)}
            for name, network in self.networks.items():
                results[name] = score_network(network.to(self.device), self._pairs(test))
            sets = images_by_set(data.test or data.validation)
            self.summary |= mean_scores(results, test)
            self.summary["sets"] = {name: mean_scores(results, images) for name, images in sets.items()}
            if main:
                crops = list(cut_crops(self.networks["student"], test, data.rounding, data.noise_sigma))
                write_crops(self.folder / SAMPLES, crops)
                draw_samples(self.folder / SAMPLES, crops)
        if main:
            draw_curves(self.folder / "curves.png", {name: run.rows() for name, run in self.runs.items()})

    def _pairs(self, images: Mapping[str, Pixels]) -> Iterator[tuple[str, ImagePair]]:
        data = self.config.data
        return pairs_of(images, self.config.scale, data.rounding, noise_sigma=data.noise_sigma, device=self.device)

    def _score_as_trained(self, network: Network) -> float:
        """PSNR-Y over the validation images, in dB, as a training scores them."""
        config, device = self.config, self.device
        pairs = validation_pairs(self.sets.images, config.scale, config.data, device)
        return validation_scores(network, pairs, choose_precision(config.train, device), device).psnr_y


def run_recipe(config: Config, folder: Path, *, resume: bool = False, profile: bool = False) -> dict[str, Any]:
    """Run or continue a recipe; returns what summary.json holds. All ranks take part; the first one writes.

    Arguments are `Pipeline`'s.

    Raises:
        ValueError: bad images, a bad teacher, a taken folder: one sentence that names what is wrong.
    """
    pipeline = Pipeline(config, folder, resume=resume, profile=profile)
    with lasting_output(), stops_cleanly(), pipeline.claimed:
        pipeline.begin()
        clock = StageClock(folder / "stages.json")
        for stage in pipeline.stages:
            if stage.run is not None:
                with clock.timed(stage.name):
                    stage.run()
        summary = {**pipeline.summary, "seconds": clock.seconds}
        if distributed.is_main_process():
            write_json(folder / "summary.json", summary)
            show_summary(summary, folder)
            report_if_possible(write_run_report, folder)
    return summary


def check_start(start: str, folder: Path) -> None:
    """Refuse a run that cannot begin with the checkpoint that its recipe starts from, if it names one.

    Raises:
        ValueError: the checkpoint is missing; names it.
    """
    if start and not Path(start).is_file() and not (folder / CHECKPOINTS).exists():
        raise ValueError(f"{start}: there is no such checkpoint, from which this run starts; train that network first")


def check_scored(data: Data, objective: Objective, train: Train) -> None:
    """Refuse to score a network that makes residuals.

    Raises:
        ValueError: there are images to score it on, or a baseline to compare it with; names all that is to be changed.
    """
    changes = [f"--data.{key}" for key in ("validation", "monitor", "test") if getattr(data, key)]
    changes += ["--train.baseline false"] * train.baseline
    if objective.name == "residual" and changes:
        raise ValueError(
            "objective.name=residual trains a network to make residuals, which have no PSNR; "
            f"add {' '.join(changes)}, and look at them with `eco-fast analyze noise`"
        )
