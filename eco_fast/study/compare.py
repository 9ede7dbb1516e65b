"""`eco-fast compare`: the same recipe with several objectives or settings, each with several seeds, on equal terms.

All arms have one store, one teacher (of each kind that they name), and for each seed the same initial weights and
samples. What is finished is never done again: the same command goes on where it was stopped, and several processes that
are given the same command share the work, one run at a time each.

DIR/store/                      the decoded pictures and centroids, unless data.store names a folder
DIR/teachers/steps=N/           the run folder of a teacher that is trained here
DIR/runs/ARM/seed=S/            a run folder; its scores.json is written last
DIR/table.* curves.* ...        see `comparison_report.py`
"""

import hashlib
import json
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from eco_fast.config import Config, Teacher
from eco_fast.data.batch import BatchPlanner
from eco_fast.data.open_loader import choose_loader
from eco_fast.data.sources import ImageSource, sizes_of
from eco_fast.evaluation.benchmarks import BenchmarkSets, read_images, read_sets, set_name
from eco_fast.evaluation.evaluate import json_safe, score_network
from eco_fast.evaluation.metrics import average
from eco_fast.models import Network, load_network_of_scale
from eco_fast.study.comparison import Run, Scored, collect
from eco_fast.study.comparison_report import show_comparison, write_comparison
from eco_fast.study.variants import Arm, make_arms, seeds_of
from eco_fast.training.checkpoints import weights_path
from eco_fast.training.loop import ValidationSets, train_network
from eco_fast.training.pipeline import check_start
from eco_fast.training.run_folder import CHECKPOINTS, RunFolder, check_folder
from eco_fast.training.state import initial_network
from eco_fast.training.training_data import LoadedTeacher, load_teacher, obtain_centroids, open_images, train_teacher
from eco_fast.utils import distributed
from eco_fast.utils.device import device_name, pick_device
from eco_fast.utils.files import claimed, sha256_of, write_json

SAMPLED = 64  # steps whose samples are in a run's fingerprint


def compare(base: Config, wanted: Sequence[Sequence[str]], across: Sequence[str], seeds: int, folder: Path) -> None:
    """Train what is not finished yet, and write and show the results of all that is.

    Args:
        base: the recipe.
        wanted: as `make_arms` has it.
        across: likewise.
        seeds: runs of each arm.
        folder: the comparison's.

    Raises:
        ValueError: bad arms, pictures or teachers; or runs that could not be finished, after all others are.
    """
    base = for_all(base, folder)
    arms = make_arms(base, wanted, across)
    runs = [planned(arm, seed, folder) for seed in seeds_of(base, seeds) for arm in arms]
    material = Material(base)
    device = pick_device(base.train.device)
    check_start(base.model.start_from, folder)
    choose_loader(base.data, device)
    for run in runs:
        check_folder(run.folder, run.recipe, resume=True)
        if run.recipe.needs_centroids and run.arm.recipe.teacher.checkpoint != "self":
            load_network_of_scale(Path(run.recipe.teacher.checkpoint), base.scale)  # refuse a bad one before any work
    print(f"{folder}: {len(arms)} arms of {seeds} seeds on {device_name(device)}", flush=True)
    with ExitStack() as lock:
        distributed.on_rank0(lambda: lock.enter_context(claimed(folder / "locks" / "material", wait=True)))
        teachers = material.prepare(arms, folder)
    failed: dict[str, ValueError] = {}
    for run in runs:
        with ExitStack() as lock:
            if not distributed.on_rank0(lambda: lock.enter_context(claimed(folder / "locks" / run.name))):  # noqa: B023 - now
                print(f"{run.name}: another process is at it", flush=True)
            elif not run.finished:
                try:
                    carry_out(run, material, device)
                except ValueError as error:
                    failed[run.name] = error
                    print(f"{run.name} failed: {error}", flush=True)
    results = collect(runs, list(material.sets), teachers)
    if distributed.is_main_process():
        write_comparison(folder, results)
        show_comparison(folder, results)
    if failed:
        name, reason = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed, and are missing in the tables; {name}: {reason}")


def for_all(base: Config, folder: Path) -> Config:
    """The base recipe with one store for all runs, and without a twin, which is an arm here."""
    data = base.data.model_copy(update={"store": base.data.store or str(folder / "store")})
    train = base.train.model_copy(update={"vanilla_twin": False})
    return base.model_copy(update={"data": data, "train": train})


def planned(arm: Arm, seed: int, folder: Path) -> Run:
    """An arm's run of a seed; its recipe names its teacher's checkpoint, wherever that comes from."""
    recipe = arm.recipe.model_copy(update={"seed": seed})
    if recipe.needs_centroids:
        checkpoint = teacher_checkpoint(arm.recipe.teacher, folder)
        teacher = recipe.teacher.model_copy(update={"checkpoint": str(checkpoint)})
        recipe = recipe.model_copy(update={"teacher": teacher})
    return Run(arm, seed, folder / "runs" / arm.name / f"seed={seed}", recipe)


def teacher_folder(teacher: Teacher, folder: Path) -> Path:
    """Where a teacher is trained."""
    return folder / "teachers" / f"steps={teacher.steps}"


def teacher_checkpoint(teacher: Teacher, folder: Path) -> Path:
    """Where a teacher's weights are, or will be."""
    if teacher.checkpoint != "self":
        return Path(teacher.checkpoint)
    return weights_path(teacher_folder(teacher, folder) / CHECKPOINTS, "last")


class Material:
    """What the runs have in common: pictures, centroids, and the sets that they are scored on.

    Args:
        base: the recipe.

    Raises:
        ValueError: bad pictures, or none for the validation.
    """

    def __init__(self, base: Config) -> None:
        data, scale = base.data, base.scale
        if not data.validation:
            raise ValueError(
                "a comparison needs pictures to validate on, which choose the best checkpoints: "
                """for example --set data.validation='["Kodak24"]'"""
            )
        self.base = base
        self.validation = read_images(data.validation, scale)
        self.watched: BenchmarkSets = read_sets(data.watch, scale)
        self.sets: BenchmarkSets = {
            "+".join(map(set_name, data.validation)): self.validation,
            **self.watched,
            **read_sets(data.test, scale),
        }
        """All sets that finished networks are scored on; the first one is the validation's."""
        self.centroids: dict[Teacher, ImageSource] = {}

    def prepare(self, arms: Sequence[Arm], folder: Path) -> dict[str, Scored]:
        """Make pictures, teachers and centroids, where they are not there yet; the teachers' scores.

        Raises:
            ValueError: bad pictures or teachers.
        """
        self.images = open_images(self.base.data, self.base.scale, folder, needs_centroids=True)
        scores: dict[str, Scored] = {}
        for arm in arms:
            teacher = arm.recipe.teacher
            if not arm.recipe.needs_centroids or self.images.centroid_files is not None or teacher in self.centroids:
                continue
            own = self.base.model_copy(update={"teacher": teacher})
            loaded = (
                load_teacher(Path(teacher.checkpoint), own.scale)
                if teacher.checkpoint != "self"
                else self._train(own, folder)
            )
            self.centroids[teacher] = obtain_centroids(own, folder, self.images, loaded)
            scores[str(loaded.checkpoint)] = self._scores_of(loaded, folder / "teachers")
        return scores

    def _train(self, own: Config, folder: Path) -> LoadedTeacher:
        sets = ValidationSets(self.validation)
        return train_teacher(own, teacher_folder(own.teacher, folder), self.images.hr, sets, resume=True)

    def _scores_of(self, teacher: LoadedTeacher, folder: Path) -> Scored:
        """The scores of a teacher over all sets, which are kept in a file."""
        kept = folder / f"{sha256_of(teacher.checkpoint)[:16]}.json"
        if not kept.is_file():
            device = pick_device(self.base.train.device)
            scores = self.score(teacher.network.to(device), device)
            distributed.on_rank0(lambda: write_json(kept, scores))
        result: Scored = json.loads(kept.read_text(encoding="utf-8"))
        return result

    def score(self, network: Network, device: str) -> Scored:
        """The mean scores of a network over each set."""
        rounding, sigma = self.base.data.rounding, self.base.data.noise_sigma
        scores = {
            name: score_network(network, images, rounding, noise_sigma=sigma, device=device)
            for name, images in self.sets.items()
        }
        return {name: json_safe(average(list(one.values()))) for name, one in scores.items()}


def carry_out(run: Run, material: Material, device: str) -> None:
    """Train to the end and keep the scores of the last and the best checkpoint."""
    files = RunFolder(run.folder, run.recipe, resume=True)
    sr = None
    if run.recipe.needs_centroids:
        sr = material.images.centroid_files or material.centroids[run.arm.recipe.teacher]
    train_network(files, material.images.hr, sr, ValidationSets(material.validation, material.watched), run.name)
    last, best = (files.checkpoint(name) for name in ("last", "best"))
    scores = {"last": material.score(load_network_of_scale(last, run.recipe.scale).to(device), device)}
    scores["best"] = scores["last"]
    if sha256_of(best) != sha256_of(last):
        scores["best"] = material.score(load_network_of_scale(best, run.recipe.scale).to(device), device)
    if distributed.is_main_process():
        write_json(run.scores, {**scores, "fingerprint": fingerprint(run.recipe, material.images.hr)})


def fingerprint(recipe: Config, hr: ImageSource) -> dict[str, str]:
    """What the arms of a seed have in common, as SHA-256: the initial weights, and the samples of the first steps."""
    network, _ = initial_network(recipe, warm=False)  # what it starts from may be gone by now, and is common to all
    weights, samples = hashlib.sha256(), hashlib.sha256()
    for tensor in network.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    planner = BatchPlanner(recipe, sizes_of(hr))
    for step in range(SAMPLED):
        for values in vars(planner.plan(step).crops).values():
            samples.update(values.tobytes())
    return {"initial_weights": weights.hexdigest(), "samples": samples.hexdigest()}
