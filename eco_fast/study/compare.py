"""`eco-fast compare`: variants of a recipe, each with several seeds, on equal terms.

All variants share one store, one teacher (of each kind they name), and for each seed the initial weights and samples.
Finished work is never repeated: the same command continues where it was stopped. Several processes that run the command
share the work, one run at a time each.

DIR/store/                      the decoded images and centroids, unless data.store names a folder
DIR/pinned.json                 the images that all of them train on; see `training/pinned.py`
DIR/teachers/steps=N/           the run folder of a teacher that is trained here
DIR/tuning/VARIANT/seed=S/      the run folder of one that picks values; see `tuning.py`
DIR/runs/VARIANT/seed=S/        a run folder; its scores.json is written last
DIR/table.* curves.* ...        see `comparison_report.py`; report.html holds all of it
"""

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from eco_fast.config import Config, Teacher
from eco_fast.data.batch import BatchPlanner
from eco_fast.data.open_loader import choose_loader
from eco_fast.data.sources import ImageSource, sizes_of
from eco_fast.models import load_network_of_scale
from eco_fast.study.comparison import PlannedRun, StoredScores, collect
from eco_fast.study.comparison_page import write_comparison_page
from eco_fast.study.comparison_report import show_comparison, write_comparison
from eco_fast.study.scored_sets import ScoredSets
from eco_fast.study.tuning import describe_pick, pick
from eco_fast.study.variants import Variant, make_variants, seeds_of, tuned_variants, tuning_seeds_of
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
from eco_fast.utils.files import sha256_of, write_json
from eco_fast.utils.lasting import lasting_output
from eco_fast.utils.locks import TakenError, file_lock

SAMPLED = 64  # steps whose samples the fingerprint of a run covers
SHOWN = 4  # images of the validation whose crops are kept of each run


def compare(
    base: Config,
    wanted: Sequence[Sequence[str]],
    across: Sequence[str],
    seeds: int,
    folder: Path,
    tune: Sequence[str] = (),
    tuning_seeds: int = 1,
) -> None:
    """Train what is not finished yet, and write and show the results of all finished runs.

    `wanted` and `across` are those of `make_variants`, `tune` is that of `tuned_variants`; `seeds` counts the runs of
    each variant, `tuning_seeds` those of each of its values before.

    Raises:
        ValueError: bad variants, images or teachers; or, after all other runs are finished, the first that failed.
    """
    with lasting_output(), stops_cleanly():
        base = for_all(base, folder)
        variants = make_variants(base, wanted, across)
        tried = [tuned_variants(base, variant, tune) for variant in variants]
        every = list(itertools.chain(*tried))
        trial_seeds, scored = tuning_seeds_of(base, tuning_seeds) if tune else [], seeds_of(base, seeds)
        trials = [planned(one, seed, folder, "tuning") for seed in trial_seeds for one in every]
        sets = ScoredSets(base)
        for run in [*trials, *(planned(one, seed, folder) for seed in scored for one in every)]:
            check_folder(run.folder, run.recipe, resume=True, same_course=True)
        print(f"{folder}: {len(variants)} variants of {seeds} seeds", flush=True)
        material = begin_material(base, every, folder, sets)
        carry_out_all(trials, material, sets.without_others(), folder, wait=True)
        picks = distributed.on_rank0(
            lambda: [pick(*one, trials, sets.chooses) for one in zip(variants, tried, strict=True) if trials]
        )
        for found in picks:
            print(describe_pick(found), flush=True)
        compared = [found.picked for found in picks] or variants
        runs = [planned(variant, seed, folder) for seed in scored for variant in compared]
        failed = carry_out_all(runs, material, sets, folder)
        results = collect(runs, list(sets.every), material.teachers)
        if distributed.is_main_process():
            write_comparison(folder, results, picks)
            show_comparison(folder, results, picks)
            report_if_possible(write_comparison_page, folder)
    if failed:
        name, reason = next(iter(failed.items()))
        raise ValueError(f"{len(failed)} of {len(runs)} runs failed, and are missing in the tables; {name}: {reason}")


def for_all(base: Config, folder: Path) -> Config:
    """The base recipe with one store for all runs, and without a baseline of its own, which is a variant here."""
    data = base.data.model_copy(update={"store": base.data.store or str(folder / "store")})
    train = base.train.model_copy(update={"baseline": False})
    return base.model_copy(update={"data": data, "train": train})


def planned(variant: Variant, seed: int, folder: Path, kind: str = "runs") -> PlannedRun:
    """A variant's run of a seed, of kind runs or tuning; its recipe names its teacher's checkpoint."""
    recipe = variant.recipe.model_copy(update={"seed": seed})
    if recipe.needs_centroids:
        checkpoint = teacher_checkpoint(variant.recipe.teacher, folder)
        teacher = recipe.teacher.model_copy(update={"checkpoint": str(checkpoint)})
        recipe = recipe.model_copy(update={"teacher": teacher})
    return PlannedRun(variant, seed, folder / kind / variant.name / f"seed={seed}", recipe)


def begin_anew(folder: Path) -> None:
    """Forget the images of a comparison that has trained nothing."""
    if not any(begun(one) for kind in ("runs/*/*", "tuning/*/*", "teachers/*") for one in folder.glob(kind)):
        (folder / PINNED).unlink(missing_ok=True)


def teacher_folder(teacher: Teacher, folder: Path) -> Path:
    """Where a teacher is trained."""
    return folder / "teachers" / f"steps={teacher.steps}"


def teacher_checkpoint(teacher: Teacher, folder: Path) -> Path:
    """Where a teacher's weights are, or will be."""
    if teacher.checkpoint != "self":
        return Path(teacher.checkpoint)
    return weights_path(teacher_folder(teacher, folder) / CHECKPOINTS, "last")


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


def begin_material(base: Config, variants: Sequence[Variant], folder: Path, sets: ScoredSets) -> Material:
    """Refuse what can be refused before any work, say who works, and make what the runs train on."""
    device = pick_device(base.train.device)
    check_start(base.model.start_from, folder)
    check_trackers(name for variant in variants for name in variant.recipe.train.trackers)
    loader, why = choose_loader(base.data, device)
    named = {variant.recipe.teacher.checkpoint for variant in variants if variant.recipe.needs_centroids} - {"self"}
    given = {name: load_teacher(Path(name), base.scale) for name in sorted(named)}
    print(f"on {device_name(device)}; loader: {loader}, {why}", flush=True)
    with ExitStack() as lock:
        distributed.on_rank0(lambda: _lock(lock, folder / "locks" / "material", wait=True))
        distributed.on_rank0(lambda: begin_anew(folder))
        return prepare_material(base, variants, given, folder, sets)


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


def carry_out_all(
    runs: Sequence[PlannedRun], material: Material, sets: ScoredSets, folder: Path, *, wait: bool = False
) -> dict[str, ValueError]:
    """Carry out the runs that are not finished; returns why some failed, by their names.

    Those that other processes are at are left to them; `wait` waits for them in the end, and does what they have not
    finished.
    """
    failed: dict[str, ValueError] = {}
    taken: list[PlannedRun] = []

    def attempt(run: PlannedRun, *, wait: bool) -> None:
        with ExitStack() as lock:
            if refusal := distributed.on_rank0(lambda: _lock(lock, folder / "locks" / run.name, wait=wait)):
                print(f"{run.name}: another process is running it: {refusal}", flush=True)
                taken.append(run)
            elif not run.finished:
                try:
                    carry_out(run, material, sets)
                except ValueError as error:
                    failed[run.name] = error
                    print(f"{run.name} failed: {error}", flush=True)

    for run in runs:
        attempt(run, wait=False)
    for run in taken if wait else ():
        attempt(run, wait=True)
    return failed


def _lock(stack: ExitStack, path: Path, *, wait: bool = False) -> str:
    """Hold a lock file until the stack ends; says who holds it already, if another process does."""
    try:
        stack.enter_context(file_lock(path, wait=wait))
    except TakenError as error:
        return str(error)
    return ""


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
