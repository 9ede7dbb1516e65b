"""`eco-fast compare`: variants of a recipe, each with several seeds, on equal terms.

All variants share one store, one teacher (of each kind they name), and for each seed the initial weights and samples.
Finished work is never repeated: the same command continues where it was stopped. Several processes that run the command
share the work, one run at a time each.

DIR/store/                      the decoded images and centroids, unless data.store names a folder
DIR/pinned.json                 the images that all of them train on; see `training/pinned.py`
DIR/teachers/steps=N/           the run folder of a teacher that is trained here
DIR/runs/VARIANT/seed=S/        a run folder; its scores.json is written last
DIR/table.* curves.* ...        see `comparison_report.py`; report.html holds all of it
"""

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from eco_fast.config import Config, Teacher
from eco_fast.data.batch import BatchPlanner
from eco_fast.data.open_loader import choose_loader
from eco_fast.data.sources import ImageSource, sizes_of
from eco_fast.evaluation.benchmarks import BenchmarkSets, read_images, read_sets, set_name
from eco_fast.evaluation.evaluate import json_safe
from eco_fast.evaluation.metrics import average
from eco_fast.evaluation.scoring import pairs_of, score_network
from eco_fast.models import Network, load_network_of_scale
from eco_fast.study.comparison import PlannedRun, StoredScores, collect
from eco_fast.study.comparison_page import write_comparison_page
from eco_fast.study.comparison_report import show_comparison, write_comparison
from eco_fast.study.variants import Variant, make_variants, seeds_of
from eco_fast.training.checkpoints import weights_path
from eco_fast.training.crops import SAMPLES, cut_crops, write_crops
from eco_fast.training.loop import train_network
from eco_fast.training.pinned import contents_of, pin, pin_names
from eco_fast.training.pipeline import check_start
from eco_fast.training.report.page import report_if_possible
from eco_fast.training.run_folder import CHECKPOINTS, PINNED, RunFolder, begun, check_folder
from eco_fast.training.signals import stops_cleanly
from eco_fast.training.state import initial_network
from eco_fast.training.trackers import check_trackers
from eco_fast.training.training_data import (
    LoadedTeacher,
    TrainingImages,
    load_teacher,
    obtain_centroids,
    open_images,
    train_teacher,
)
from eco_fast.training.validation import ValidationSets
from eco_fast.utils import distributed
from eco_fast.utils.device import device_name, pick_device
from eco_fast.utils.files import name_damaged, sha256_of, write_json
from eco_fast.utils.lasting import lasting_output
from eco_fast.utils.locks import TakenError, file_lock

SAMPLED = 64  # steps whose samples the fingerprint of a run covers
SHOWN = 4  # images of the validation whose crops are kept of each run


def compare(base: Config, wanted: Sequence[Sequence[str]], across: Sequence[str], seeds: int, folder: Path) -> None:
    """Train what is not finished yet, and write and show the results of all finished runs.

    `wanted` and `across` are those of `make_variants`, `seeds` the number of runs of each variant.

    Raises:
        ValueError: bad variants, images or teachers; or, after all other runs are finished, the first that failed.
    """
    with lasting_output(), stops_cleanly():
        _compare(for_all(base, folder), wanted, across, seeds, folder)


def _compare(base: Config, wanted: Sequence[Sequence[str]], across: Sequence[str], seeds: int, folder: Path) -> None:
    variants = make_variants(base, wanted, across)
    runs = [planned(variant, seed, folder) for seed in seeds_of(base, seeds) for variant in variants]
    sets = ScoredSets(base)
    device = pick_device(base.train.device)
    check_start(base.model.start_from, folder)
    check_trackers(name for variant in variants for name in variant.recipe.train.trackers)
    loader, why = choose_loader(base.data, device)
    for run in runs:
        check_folder(run.folder, run.recipe, resume=True, same_course=True)
    named = {variant.recipe.teacher.checkpoint for variant in variants if variant.recipe.needs_centroids} - {"self"}
    given = {name: load_teacher(Path(name), base.scale) for name in sorted(named)}  # refuse a bad one before any work
    print(f"{folder}: {len(variants)} variants of {seeds} seeds on {device_name(device)}", flush=True)
    print(f"loader: {loader}, {why}", flush=True)
    with ExitStack() as lock:
        distributed.on_rank0(lambda: _lock(lock, folder / "locks" / "material", wait=True))
        distributed.on_rank0(lambda: begin_anew(folder, runs))
        material = prepare_material(base, variants, given, folder, sets)
    failed: dict[str, ValueError] = {}
    for run in runs:
        with ExitStack() as lock:
            if refusal := distributed.on_rank0(lambda: _lock(lock, folder / "locks" / run.name)):  # noqa: B023 - now
                print(f"{run.name}: another process is running it: {refusal}", flush=True)
            elif not run.finished:
                try:
                    carry_out(run, material, sets)
                except ValueError as error:
                    failed[run.name] = error
                    print(f"{run.name} failed: {error}", flush=True)
    results = collect(runs, list(sets.every), material.teachers)
    if distributed.is_main_process():
        write_comparison(folder, results)
        show_comparison(folder, results)
        report_if_possible(write_comparison_page, folder)
    if failed:
        name, reason = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed, and are missing in the tables; {name}: {reason}")


def _lock(stack: ExitStack, path: Path, *, wait: bool = False) -> str:
    """Hold a lock file until the stack ends; says who holds it already, if another process does."""
    try:
        stack.enter_context(file_lock(path, wait=wait))
    except TakenError as error:
        return str(error)
    return ""


def for_all(base: Config, folder: Path) -> Config:
    """The base recipe with one store for all runs, and without a baseline of its own, which is a variant here."""
    data = base.data.model_copy(update={"store": base.data.store or str(folder / "store")})
    train = base.train.model_copy(update={"baseline": False})
    return base.model_copy(update={"data": data, "train": train})


def planned(variant: Variant, seed: int, folder: Path) -> PlannedRun:
    """A variant's run of a seed; its recipe names its teacher's checkpoint, given or trained here."""
    recipe = variant.recipe.model_copy(update={"seed": seed})
    if recipe.needs_centroids:
        checkpoint = teacher_checkpoint(variant.recipe.teacher, folder)
        teacher = recipe.teacher.model_copy(update={"checkpoint": str(checkpoint)})
        recipe = recipe.model_copy(update={"teacher": teacher})
    return PlannedRun(variant, seed, folder / "runs" / variant.name / f"seed={seed}", recipe)


def begin_anew(folder: Path, runs: Sequence[PlannedRun]) -> None:
    """Forget the images of a comparison that has trained nothing."""
    if not any(map(begun, [*(run.folder for run in runs), *folder.glob("teachers/*")])):
        (folder / PINNED).unlink(missing_ok=True)


def teacher_folder(teacher: Teacher, folder: Path) -> Path:
    """Where a teacher is trained."""
    return folder / "teachers" / f"steps={teacher.steps}"


def teacher_checkpoint(teacher: Teacher, folder: Path) -> Path:
    """Where a teacher's weights are, or will be."""
    if teacher.checkpoint != "self":
        return Path(teacher.checkpoint)
    return weights_path(teacher_folder(teacher, folder) / CHECKPOINTS, "last")


class ScoredSets:
    """The sets that networks are scored on.

    Raises:
        ValueError: bad images, or none for the validation.
    """

    def __init__(self, base: Config) -> None:
        data, scale = base.data, base.scale
        if not data.validation:
            raise ValueError(
                "a comparison needs validation images to select the best checkpoints: "
                "for example --data.validation Kodak24"
            )
        self.base = base
        self.validation = read_images(data.validation, scale)
        self.monitored: BenchmarkSets = read_sets(data.monitor, scale)
        validation: BenchmarkSets = {"+".join(map(set_name, data.validation)): self.validation}
        self.every: BenchmarkSets = {**validation, **self.monitored, **read_sets(data.test, scale)}
        """All sets that finished networks are scored on; the first one is the validation's."""

    def score(self, network: Network) -> StoredScores:
        """The mean scores of a network over each set."""
        data, device = self.base.data, pick_device(self.base.train.device)
        network.to(device)
        scores = {
            name: score_network(
                network, pairs_of(images, network.scale, data.rounding, noise_sigma=data.noise_sigma, device=device)
            )
            for name, images in self.every.items()
        }
        return {name: json_safe(average(list(one.values()))) for name, one in scores.items()}

    def score_once(self, network: Network, kept: Path) -> StoredScores:
        """The same, kept in a file."""
        if not kept.is_file():
            scores = self.score(network)
            distributed.on_rank0(lambda: write_json(kept, scores))
        with name_damaged(kept):
            result: StoredScores = json.loads(kept.read_text(encoding="utf-8"))
        return result


@dataclass(frozen=True)
class Material:
    """What the runs train on.

    Attributes:
        images: the HR images, and their centroids where the recipe names them as files.
        centroids: otherwise, by teacher as the variants name it.
        teachers: the teachers' scores, by checkpoint.
    """

    images: TrainingImages
    centroids: dict[Teacher, ImageSource]
    teachers: dict[str, StoredScores]


def prepare_material(
    base: Config, variants: Sequence[Variant], given: Mapping[str, LoadedTeacher], folder: Path, sets: ScoredSets
) -> Material:
    """Make images, teachers and centroids, unless they exist; teachers that are not `given` are trained.

    Raises:
        ValueError: bad images or teachers; or other images than before.
    """
    if base.data.train:
        pin_names(folder, base.data.train)
    images = open_images(base.data, base.scale, folder, needs_centroids=True)
    pin(folder, "training images", contents_of(images.hr))
    material = Material(images, {}, {})
    for variant in variants:
        teacher = variant.recipe.teacher
        if not variant.recipe.needs_centroids or images.centroid_files is not None or teacher in material.centroids:
            continue
        own = base.model_copy(update={"teacher": teacher})
        loaded = given.get(teacher.checkpoint) or train_teacher(
            own, teacher_folder(teacher, folder), images.hr, ValidationSets(sets.validation), resume=True
        )
        material.centroids[teacher] = obtain_centroids(own, folder, images, loaded)
        kept = folder / "teachers" / f"{sha256_of(loaded.checkpoint)[:16]}.json"
        material.teachers[str(loaded.checkpoint)] = sets.score_once(loaded.network, kept)
    return material


def carry_out(run: PlannedRun, material: Material, sets: ScoredSets) -> None:
    """Train to the end and keep the scores of the last and the best checkpoint."""
    sr = None
    if run.recipe.needs_centroids:
        sr = material.images.centroid_files or material.centroids[run.variant.recipe.teacher]
    with RunFolder(run.folder, run.recipe, resume=True) as files:
        train_network(files, material.images.hr, sr, ValidationSets(sets.validation, sets.monitored), run.name)
    last, best = (files.checkpoint(name) for name in ("last", "best"))
    scale = run.recipe.scale
    network = load_network_of_scale(last, scale)
    scores = {"last": sets.score(network)}
    if distributed.is_main_process():
        some, data = dict(itertools.islice(sets.validation.items(), SHOWN)), run.recipe.data
        write_crops(run.folder / SAMPLES, list(cut_crops(network, some, data.rounding, data.noise_sigma)))
    scores["best"] = scores["last"]
    if sha256_of(best) != sha256_of(last):
        scores["best"] = sets.score(load_network_of_scale(best, scale))
    if distributed.is_main_process():
        write_json(run.scores, {**scores, "fingerprint": fingerprint(run.recipe, material.images.hr)})


def fingerprint(recipe: Config, hr: ImageSource) -> dict[str, str]:
    """SHA-256 of what the variants of a seed share: the initial weights, and the samples of the first steps."""
    network, _ = initial_network(recipe, warm=False)  # what it starts from may be gone by now, and is common to all
    weights, samples = hashlib.sha256(), hashlib.sha256()
    for tensor in network.state_dict().values():
        weights.update(tensor.numpy().tobytes())
    planner = BatchPlanner(recipe, sizes_of(hr))
    for step in range(SAMPLED):
        for values in vars(planner.plan(step).crops).values():
            samples.update(values.tobytes())
    return {"initial_weights": weights.hexdigest(), "samples": samples.hexdigest()}
