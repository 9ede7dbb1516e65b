"""What each stage of a recipe would do, or has done, for `--dry-run`; nothing is trained, written or allocated."""

from collections.abc import Sequence
from pathlib import Path

from eco_fast.config import Config, Data
from eco_fast.data.centroid_store import centroid_folder, open_centroids, teacher_hash
from eco_fast.data.folders import find_images
from eco_fast.data.store import Store
from eco_fast.training.checkpoints import load_state
from eco_fast.training.run_folder import CHECKPOINTS, check_folder
from eco_fast.training.training_data import store_folder


def state_of_images(sources: Sequence[str]) -> str:
    """How many images the sources hold, or what is wrong with them."""
    try:
        return f"{len(find_images(sources))} images of {', '.join(sources)}" if sources else "no images are named"
    except ValueError as error:
        return str(error)


def state_of_store(data: Data, folder: Path) -> str:
    """The state of the HR images; `folder` is the run's."""
    where = store_folder(data, folder)
    if data.source == "files":
        return f"not needed: {state_of_images(data.train)}, decoded at every step"
    if not data.train and not data.store:
        return "data.train is missing: name your HR images, for example --data.train DIV2K_HR"
    try:
        stored = f"{len(Store(where))} images in {where}"
    except ValueError as error:
        return f"{state_of_images(data.train)} into {where}" if data.train else str(error)
    return f"{stored}, to be compared with {state_of_images(data.train)}" if data.train else f"not needed: {stored}"


def state_of_centroids(config: Config, folder: Path, teacher: Path) -> str:
    """The state of the centroids of a teacher, which may not be there yet."""
    if not teacher.is_file():
        return "after the teacher"
    store, ensemble = store_folder(config.data, folder), config.teacher.self_ensemble
    sha256 = teacher_hash(store, config.scale, config.data.rounding, teacher)
    made = centroid_folder(store, config.scale, config.data.rounding, sha256, self_ensemble=ensemble)
    try:
        return f"reused: {len(open_centroids(Store(store), made, config.scale))} centroids in {made}"
    except ValueError:
        return f"into {made}"


def state_of_training(config: Config, folder: Path, *, resume: bool) -> str:
    """The state of one training."""
    steps, done, refused = config.train.steps, None, ""
    try:
        done = steps_done(folder)
        check_folder(folder, config, resume=resume)
    except ValueError as error:
        refused = f"; refused: {error}"
    if done is not None:
        state = f"goes on at step {done:,} of {steps:,}" if done < steps else f"finished, at step {steps:,}"
        return state + refused
    start = config.model.start_from
    origin = f" from {start}{'' if Path(start).is_file() else ', which is missing'}" if start else " from scratch"
    return f"{steps:,} steps{origin}{refused}"


def steps_done(folder: Path) -> int | None:
    """Steps that a training has behind it, or None where it has not begun."""
    found = load_state(folder / CHECKPOINTS)
    return None if found is None else int(found.state["step"])
