"""`eco-fast train`: from pictures to a table, stage by stage; every finished stage is reused.

prepare -> teacher (a vanilla run, or a given checkpoint) -> teach -> student -> vanilla twin -> evaluate

RUN/            the student's run folder, and the results
RUN/store/      the decoded pictures and centroids, unless data.store names a folder
RUN/teacher/    the run folder of teacher.checkpoint = "self"
RUN/vanilla/    the run folder of the twin
"""

import json
import math
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from eco_fast.config import Config
from eco_fast.data.encoded import EncodedImages
from eco_fast.data.images import Pixels
from eco_fast.data.noise import facts
from eco_fast.data.open_loader import Pictures, choose_loader, open_centroid_files, open_encoded
from eco_fast.data.prepare import prepare
from eco_fast.data.store import Store
from eco_fast.evaluation.benchmarks import images_by_set, read_images, read_sets
from eco_fast.evaluation.evaluate import mean_scores, score_bicubic, score_network
from eco_fast.inference import centroids
from eco_fast.models import load_network, load_network_of_scale
from eco_fast.training.figures import draw_curves, draw_samples, show_summary
from eco_fast.training.loop import train_network
from eco_fast.training.run_folder import CHECKPOINTS, RunFolder
from eco_fast.utils import distributed
from eco_fast.utils.device import device_name, pick_device
from eco_fast.utils.files import write_json

OnePictures = TypeVar("OnePictures", Store, EncodedImages)


def run_recipe(config: Config, folder: Path, *, resume: bool = False, profile: bool = False) -> dict[str, Any]:
    """Run or continue a recipe; returns what summary.json holds. All ranks take part; the first one writes.

    Args:
        config: the recipe.
        folder: the run's.
        resume: continue what is there.
        profile: write a trace of a few steps of the student.

    Raises:
        ValueError: bad pictures, a bad teacher, a taken folder: one sentence that names what is wrong.
    """
    device = pick_device(config.train.device)
    watched = read_sets(config.data.watch, config.scale)
    validation, test = (read_images(sources, config.scale) for sources in (config.data.validation, config.data.test))
    test = test or validation
    sets = images_by_set(config.data.test or config.data.validation)
    if config.teacher.checkpoint != "self" and config.needs_centroids:
        load_network_of_scale(Path(config.teacher.checkpoint), config.scale)  # refuse a bad one before any work
    check_start(config, folder)
    choose_loader(config, device)  # likewise
    run = RunFolder(folder, config, resume=resume)
    print(f"{folder} on {device_name(device)}", flush=True)
    stages = Stages(folder / "stages.json")

    with stages.timed("prepare"):
        hr, sr = open_pictures(config, folder)
    teacher_path = None
    if config.needs_centroids and sr is None:
        with stages.timed("teacher"):
            teacher_path = obtain_teacher(config, folder / "teacher", hr, validation, resume=resume)
        with stages.timed("teach"):
            sr = make_centroids(config, folder, hr, teacher_path)
    with stages.timed("train"):
        teacher_psnr = score_teacher(config, teacher_path, validation, device) if teacher_path else math.inf
        student = train_network(
            run, hr, sr, validation, "student", watched=watched, teacher_psnr=teacher_psnr, profile=profile
        )
    twin, curves = None, {"student": run}
    if config.train.vanilla_twin:
        with stages.timed("vanilla"):
            curves["vanilla twin"] = RunFolder(folder / "vanilla", vanilla(config), resume=resume)
            twin = train_network(curves["vanilla twin"], hr, None, validation, "vanilla twin", watched=watched)

    rounding, sigma = config.data.rounding, config.data.noise_sigma
    summary: dict[str, Any] = {"scale": config.scale, "steps": config.train.steps, "images": list(test)} | facts(sigma)
    with stages.timed("evaluate"):
        networks = {
            "teacher": load_network(teacher_path) if teacher_path else None,
            "vanilla": twin,
            "student": student,
        }
        if test:
            results = {"bicubic": score_bicubic(test, config.scale, rounding, noise_sigma=sigma)}
            for name, network in networks.items():
                if network is not None:
                    results[name] = score_network(network.to(device), test, rounding, noise_sigma=sigma, device=device)
            summary |= mean_scores(results, test)
            summary["sets"] = {one: mean_scores(results, pictures) for one, pictures in sets.items()}
            if distributed.is_first():
                draw_samples(folder / "samples", student, test, results["student"], results["bicubic"], rounding, sigma)
        if distributed.is_first():
            draw_curves(folder / "curves.png", {name: one.rows() for name, one in curves.items()})
    summary["seconds"] = stages.seconds
    if distributed.is_first():
        write_json(folder / "summary.json", summary)
        show_summary(summary, folder)
    return summary


def check_start(config: Config, folder: Path) -> None:
    """Refuse a run that cannot start from what its recipe names, or cannot be scored, before any work.

    Raises:
        ValueError: the checkpoint is missing, or as `check_scored`; names it.
    """
    check_scored(config)
    start = config.model.start_from
    if start and not Path(start).is_file() and not (folder / CHECKPOINTS).exists():
        raise ValueError(f"{start}: there is no such checkpoint, from which this run starts; train that network first")


def check_scored(config: Config) -> None:
    """Refuse to score a network that makes residuals.

    Raises:
        ValueError: there are pictures to score it on, or a twin to compare it with; names all that is to be changed.
    """
    changes = [f"data.{key}=[]" for key in ("validation", "watch", "test") if getattr(config.data, key)]
    changes += ["train.vanilla_twin=false"] * config.train.vanilla_twin
    if config.objective.name == "residual" and changes:
        raise ValueError(
            "objective.name=residual trains a network to make residuals, which have no PSNR; "
            f"--set {' --set '.join(changes)}, and look at them with `eco-fast analyze noise`"
        )


def open_pictures(config: Config, folder: Path) -> tuple[Pictures, Pictures | None]:
    """The HR pictures, and their centroids where the recipe names them as files.

    Raises:
        ValueError: neither pictures nor a store are named, or they cannot be used.
    """
    if config.data.source == "packed":
        if config.data.centroids:
            raise ValueError("data.centroids names picture files, which data.source=packed does not read; remove it")
        return usable(open_store(config, folder), config), None
    hr = usable(open_encoded(config), config)
    return hr, open_centroid_files(config, hr) if config.data.centroids and config.needs_centroids else None


def open_store(config: Config, folder: Path) -> Store:
    """Prepare the recipe's pictures, or open the store as it is.

    Raises:
        ValueError: neither pictures nor a store are named, or they cannot be used.
    """
    if config.data.train:
        store = Path(config.data.store) if config.data.store else folder / "store"
        return Store(distributed.by_first(lambda: prepare(config.data.train, store).folder))
    if not config.data.store:
        raise ValueError("""data.train is empty: name your HR pictures, for example --set data.train='["DIV2K_HR"]'""")
    return Store(Path(config.data.store))


def usable(pictures: OnePictures, config: Config) -> OnePictures:
    """The pictures without those that no patch fits into, which are refused unless the recipe skips them.

    Raises:
        ValueError: a picture is smaller than a patch; names the first.
    """
    side = config.scale * config.data.patch
    small = [entry for entry in pictures.entries if min(entry.height, entry.width) // config.scale < config.data.patch]
    if small and config.data.small_images == "refuse":
        raise ValueError(
            f"{small[0].name} is {small[0].width}x{small[0].height} pixels, smaller than an HR patch of {side}x{side} "
            f"({len(small)} such pictures); remove it, lower data.patch, or --set data.small_images=skip"
        )
    if len(small) == len(pictures):
        raise ValueError(f"all {len(small)} pictures are smaller than an HR patch of {side}x{side}")
    if small:
        print(
            f"{len(small)} of {len(pictures)} pictures are smaller than an HR patch of {side}x{side} and left out",
            flush=True,
        )
    return pictures.select([entry.name for entry in pictures.entries if entry not in small])


def make_centroids(config: Config, folder: Path, hr: Pictures, teacher: Path) -> Store:
    """The teacher's outputs over the HR pictures, in their order."""
    store, device = Store(hr.folder) if isinstance(hr, Store) else open_store(config, folder), config.train.device
    made = centroids.make_centroids(
        store,
        load_network_of_scale(teacher, config.scale).to(pick_device(device)),
        teacher,
        rounding=config.data.rounding,
        device=pick_device(device),
        self_ensemble=config.teacher.self_ensemble,
        compiled=config.train.compile,
    )
    return made.select([entry.name for entry in hr.entries])


def obtain_teacher(
    config: Config, folder: Path, hr: Pictures, validation: Mapping[str, Pixels], *, resume: bool
) -> Path:
    """The teacher's checkpoint: the one that is named, or the end of a vanilla run of the same architecture there."""
    if config.teacher.checkpoint != "self":
        return Path(config.teacher.checkpoint)
    run = RunFolder(folder, self_teacher(config), resume=resume)
    train_network(run, hr, None, validation, "teacher")
    return run.checkpoint("last")


def score_teacher(config: Config, checkpoint: Path, validation: Mapping[str, Pixels], device: str) -> float:
    """PSNR-Y of the teacher over the validation pictures as a training scores them, in dB; infinite without any."""
    if not validation:
        return math.inf
    network, data = load_network(checkpoint).to(device), config.data
    scores = score_network(network, validation, data.rounding, noise_sigma=data.noise_sigma, draws=1, device=device)
    psnr = statistics.fmean(one.psnr_y for one in scores.values())
    print(f"teacher: {psnr:.3f} dB on the validation pictures", flush=True)
    return psnr


def vanilla(config: Config) -> Config:
    """The same recipe on real pairs alone: same steps, samples and initial weights."""
    objective = config.objective.model_copy(update={"name": "vanilla"})
    return config.model_copy(update={"objective": objective})


def self_teacher(config: Config) -> Config:
    """The recipe of teacher = "self": vanilla, with a length and a random sequence of its own."""
    train = config.train.model_copy(update={"steps": config.teacher.steps})
    return vanilla(config).model_copy(update={"train": train, "seed": config.seed + 1})


class Stages:
    """Seconds spent in each stage, kept in a file so that they add up over interruptions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to the stage, also where the block fails."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 1)
            if distributed.is_first():
                write_json(self.path, self.seconds)
