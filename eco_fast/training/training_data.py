"""What a recipe trains on: its images, its teacher, and the centroids; each opened once, and handed on."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from eco_fast.config import Config, Data
from eco_fast.data.encoded import EncodedImages, match_centroids
from eco_fast.data.folders import find_images
from eco_fast.data.prepare import prepare
from eco_fast.data.sources import ImageSource, names_of, without_small
from eco_fast.data.store import MANIFEST, Store, read_manifest
from eco_fast.inference.centroids import make_centroids
from eco_fast.models import Network, load_network_of_scale
from eco_fast.training.forecast import Forecast
from eco_fast.training.loop import train_network
from eco_fast.training.pinned import name_in_source
from eco_fast.training.run_folder import RunFolder
from eco_fast.training.validation import ValidationSets
from eco_fast.utils import distributed
from eco_fast.utils.device import pick_device
from eco_fast.utils.files import sha256_of


@dataclass(frozen=True)
class TrainingImages:
    """The HR images, and what goes with them."""

    hr: ImageSource
    """Those that a patch fits into."""
    store: Store | None
    """All of the store that they are in; None where they are files."""
    centroid_files: ImageSource | None
    """Their centroids, where the recipe names these as files."""


@dataclass(frozen=True)
class LoadedTeacher:
    """A frozen network, and the file that it is from."""

    network: Network
    checkpoint: Path


def store_folder(data: Data, folder: Path) -> Path:
    """Where the decoded images are or will be; `folder` is the run's."""
    return Path(data.store) if data.store else folder / "store"


def open_images(data: Data, scale: int, folder: Path, *, needs_centroids: bool) -> TrainingImages:
    """Prepare and open a recipe's images; `folder` is the run's.

    Raises:
        ValueError: neither images nor a store are named, or they cannot be used.
    """
    skip = data.on_small_image == "skip"
    if data.source == "store":
        if data.centroids:
            raise ValueError("data.centroids names image files, which data.source=store does not read; remove it")
        store = open_store(data, folder)
        return TrainingImages(without_small(store, scale, data.patch, skip=skip), store, None)
    if not data.train:
        raise ValueError("data.source=files reads the files of data.train, which is empty")
    hr = without_small(EncodedImages(find_images(data.train)), scale, data.patch, skip=skip)
    if not data.centroids or not needs_centroids:
        return TrainingImages(hr, None, None)
    return TrainingImages(hr, None, match_centroids(hr, EncodedImages(find_images([data.centroids])), scale))


def open_store(data: Data, folder: Path) -> Store:
    """Prepare the recipe's images, or open the store as it is. A machine that does not see rank 0's has its own.

    Raises:
        ValueError: neither images nor a store are named, or they cannot be used.
    """
    where = store_folder(data, folder)
    if not data.train and not data.store:
        raise ValueError("data.train is empty: name your HR images, for example --data.train DIV2K_HR")
    prepared = _prepared(data.train, where) if data.train and distributed.is_main_process() else None
    manifest = distributed.on_rank0(lambda: read_manifest(where))
    if data.train and distributed.local_rank() == 0 and read_manifest(where) != manifest:
        prepared = _prepared(data.train, where)
    distributed.all_gather(None)  # it is there, for all
    return prepared or Store(where)


def _prepared(sources: Sequence[str], where: Path) -> Store:
    try:
        return prepare(sources, where)
    except ValueError:
        if (store := from_elsewhere(sources, where)) is None:
            raise
        return store


def from_elsewhere(sources: Sequence[str], where: Path) -> Store | None:
    """The finished store of the same files below folders of other names, as moved data have; None: it is another."""
    found = find_images(sources)
    if (where / MANIFEST).is_file():
        store = Store(where)
        names = [entry.name for entry in store.entries]
        pairs = zip(store.entries, found.items(), strict=False)
        if (
            names != list(found)
            and list(map(name_in_source, names)) == list(map(name_in_source, found))
            and all(entry.origin == sha256_of(path) for entry, (_, path) in pairs)
        ):
            print(f"{where}: holds the images of {', '.join(sources)} under the names that they had before", flush=True)
            return store
    return None


def load_teacher(checkpoint: Path, scale: int) -> LoadedTeacher:
    """The teacher in a file; raises as `load_network_of_scale`."""
    return LoadedTeacher(load_network_of_scale(checkpoint, scale), checkpoint)


def train_teacher(
    config: Config,
    folder: Path,
    hr: ImageSource,
    sets: ValidationSets,
    *,
    resume: bool,
    forecast: Forecast | None = None,
) -> LoadedTeacher:
    """The teacher "self": the end of a vanilla run of the same architecture, in a run folder of its own."""
    with RunFolder(folder, config.self_teacher, resume=resume) as run:
        train_network(run, hr, None, sets, "teacher", forecast=forecast)
    return load_teacher(run.checkpoint("last"), config.scale)


def obtain_centroids(config: Config, folder: Path, images: TrainingImages, teacher: LoadedTeacher) -> Store:
    """The teacher's outputs over the HR images, in their order."""
    device = pick_device(config.train.device)
    made = make_centroids(
        images.store or open_store(config.data, folder),
        teacher.network.to(device),
        teacher.checkpoint,
        rounding=config.data.rounding,
        device=device,
        self_ensemble=config.teacher.self_ensemble,
        compiled=config.train.compile,
    )
    return made.select(names_of(images.hr))
