"""What a run was trained on, held against what it noted at its start: images, centroids, teacher, validation images."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eco_fast.config import Config
from eco_fast.data.centroid_store import centroid_folder, open_centroids
from eco_fast.data.decode import Stored, still_intact
from eco_fast.data.sources import ImageSource, names_of
from eco_fast.data.store import Store
from eco_fast.evaluation.benchmarks import read_images, read_sets
from eco_fast.training.checkpoints import weights_path
from eco_fast.training.pinned import (
    Contents,
    contents_of,
    contents_of_file,
    contents_of_sets,
    first_change,
    name_in_source,
    read_pinned,
)
from eco_fast.training.run_folder import CHECKPOINTS
from eco_fast.training.training_data import TrainingImages, open_images, store_folder
from eco_fast.training.validation import ValidationSets
from eco_fast.training.verify.audited import STUDENT, KeptTraining, RefutedError
from eco_fast.utils.content_hash import content_hash
from eco_fast.utils.progress import track

LEVELS = 4  # a comparison notes the training images, and its runs lie so far below it at most


@dataclass(frozen=True)
class Evidence:
    """What the steps of a run read."""

    hr: ImageSource
    sr: ImageSource | None
    teacher: Path | None
    """Whose outputs the centroids of a store are."""
    sets: ValidationSets
    contents: Mapping[str, Contents]
    """Of all of it, by kind."""

    def digests(self) -> dict[str, dict[str, int | str]]:
        """How many they are, and the hash of their names below their folders and of what they hold; by kind."""
        return {
            kind: {"count": len(held), "sha256": content_hash([[name_in_source(name), what] for name, what in held])}
            for kind, held in self.contents.items()
        }

    def of(self, label: str) -> tuple[ImageSource | None, ValidationSets]:
        """The centroids and validation sets of one of the run's trainings."""
        sets = ValidationSets(self.sets.images) if label == "teacher" else self.sets
        return self.sr if label == STUDENT else None, sets


def open_evidence(student: KeptTraining) -> Evidence:
    """Open what a run was trained on; nothing is written.

    Raises:
        RefutedError: something of it is not what the run began with; names the first.
        ValueError: something of it is missing; names it.
    """
    recipe, run = student.recipe, student.folder
    sets = ValidationSets(
        read_images(recipe.data.validation, recipe.scale), read_sets(recipe.data.monitor, recipe.scale)
    )
    images = open_kept_images(recipe, run)
    contents: dict[str, Contents] = {"training images": contents_of(images.hr)}
    sr = teacher = None
    if recipe.needs_centroids and images.centroid_files is None:
        own = recipe.teacher.checkpoint == "self"
        teacher = weights_path(run / "teacher" / CHECKPOINTS, "last") if own else Path(recipe.teacher.checkpoint)
        contents["weights of the teacher"] = contents_of_file(teacher)
    contents |= contents_of_sets(sets.images, sets.monitored)
    if recipe.model.start_from and Path(recipe.model.start_from).is_file():
        contents["weights to start from"] = contents_of_file(Path(recipe.model.start_from))
    check_contents(student, contents)
    if recipe.needs_centroids:
        sr = images.centroid_files or kept_centroids(student, images, contents["weights of the teacher"][0][1])
        contents["centroids"] = contents_of(sr)
        check_contents(student, contents)
    for source in filter(None, (images.hr, sr)):
        for damaged in damaged_images(source):
            raise RefutedError(student.whole, f"the pixels of {damaged} are not those that were stored")
    return Evidence(images.hr, sr, teacher, sets, contents)


def open_kept_images(recipe: Config, run: Path) -> TrainingImages:
    """The training images as they are: the files, or the store without a look at what it was made of."""
    data = recipe.data
    if data.source == "store":
        data = data.model_copy(update={"train": (), "store": str(store_folder(data, run))})
    return open_images(data, recipe.scale, run, needs_centroids=recipe.needs_centroids)


def check_contents(student: KeptTraining, contents: Mapping[str, Contents]) -> None:
    """Compare with what the run, or the comparison that it is part of, noted.

    Raises:
        RefutedError: something differs; names the first.
    """
    noted: dict[str, Contents] = {}
    for folder in (student.folder, *student.folder.absolute().parents[:LEVELS]):
        noted = {**read_pinned(folder), **noted}
    for kind, now in contents.items():
        if kind in noted and (change := first_change(noted[kind], now)):
            raise RefutedError(student.whole, f"the {kind} are not those that the run began with: {change}")


def kept_centroids(student: KeptTraining, images: TrainingImages, teacher: str) -> Store:
    """The centroids of the teacher whose file has this SHA-256, in the order of the training images.

    Raises:
        RefutedError: the store has none of this teacher, or they were made of other images.
    """
    recipe, store = student.recipe, images.store
    assert store is not None, "files have centroids of their own"
    rounding, ensemble = recipe.data.rounding, recipe.teacher.self_ensemble
    folder = centroid_folder(store.folder, recipe.scale, rounding, teacher, self_ensemble=ensemble)
    try:
        made = open_centroids(store, folder, recipe.scale).select(names_of(images.hr))
    except ValueError as error:
        raise RefutedError(student.whole, f"no centroids of this teacher and these images: {error}") from error
    if made.attributes.get("teacher_sha256") != teacher:
        raise RefutedError(student.whole, f"the centroids in {folder.name} are of another teacher")
    return made


def damaged_images(source: ImageSource) -> Iterator[str]:
    """The names of a store's images whose pixels have another hash; files have been hashed as a whole."""
    if isinstance(source, Store):
        for entry in track(source.entries, "hash images"):
            if not still_intact(Stored(source.folder / entry.file, entry.offset, entry.size, entry.sha256)):
                yield entry.name
