"""The loader of a training: which one, and why."""

from typing import Any, Literal

from eco_fast.config import Config, Data
from eco_fast.data.batch import BatchPlanner
from eco_fast.data.device_loader import DeviceLoader
from eco_fast.data.feeds import Feed, ResidentImages, StagedCrops
from eco_fast.data.loader import Loader, PlainLoader
from eco_fast.data.sources import ImageSource, sizes_of
from eco_fast.utils import distributed
from eco_fast.utils.device import why_not_dali
from eco_fast.utils.files import size_in_words

LoaderName = Literal["dali", "plain", "device"]


def open_loader(
    config: Config, hr: ImageSource, sr: ImageSource | None, start: int, device: str, *, room: int, label: str
) -> Loader[Any]:
    """The loader of this rank's share of a training, from the step `start` on; says which it is and why.

    Args:
        config: the recipe.
        hr: the training images.
        sr: their centroids, where the objective needs them.
        start: first step.
        device: where the training runs.
        room: bytes of a GPU's memory that the training leaves.
        label: precedes the line that is said.

    Raises:
        ValueError: see `choose_loader`; or the images are to be on the device, and do not fit.
    """
    name, _ = choose_loader(config.data, device)
    rank, world_size = distributed.rank(), distributed.world_size()
    if not device.startswith("cuda"):
        if name == "plain":
            return PlainLoader(config, hr, sr, start, rank=rank, world_size=world_size)
        from eco_fast.data.dali_loader import DaliLoader  # noqa: PLC0415 - DALI is optional

        return DaliLoader(config, hr, sr, start, rank=rank, world_size=world_size)
    planner = BatchPlanner(config, sizes_of(hr), rank, world_size)
    sources = sources_read(planner, hr, sr, start)
    if name == "dali":
        from eco_fast.data.dali_device_loader import DaliDeviceLoader  # noqa: PLC0415 - DALI is optional

        return DaliDeviceLoader(planner, sources, start, device=device)
    resident, why = choose_residence(config.data, list(sources.values()), room)
    print(f"{label} loader: {why}", flush=True)
    feeds: dict[str, Feed] = {}
    for key, source in sources.items():
        feeds[key] = ResidentImages(key, source, planner, device) if resident else StagedCrops(key, source, planner)
    return DeviceLoader(planner, feeds, start, device=device)


def sources_read(planner: BatchPlanner, hr: ImageSource, sr: ImageSource | None, start: int) -> dict[str, ImageSource]:
    """The images that the steps from `start` on read: alpha only grows, so the first and the last step tell."""
    ends = [planner.weights(step) for step in (start, planner.config.train.steps - 1)]
    sources = {"hr": hr} if any(weights.reads_hr for weights in ends) else {}
    if sr is not None and any(weights.reads_sr for weights in ends):
        sources["sr"] = sr
    return sources


def choose_residence(data: Data, sources: list[ImageSource], room: int) -> tuple[bool, str]:
    """Whether a GPU keeps the images in its memory, and what is said of it.

    Raises:
        ValueError: they are to be there, and do not fit.
    """
    size = 3 * sum(int(sizes_of(source).prod(axis=1).sum()) for source in sources)
    fits = f"{size_in_words(size)} of images, {size_in_words(max(room, 0))} of the GPU's memory left by the training"
    if data.residence == "device" and size > room:
        raise ValueError(f"data.residence=device: {fits}; take data.residence=host, or a smaller train.micro_batch")
    if data.residence == "host":
        return False, "crops from the computer's memory, as data.residence says"
    if size > room:
        return False, f"crops from the computer's memory: {fits}"
    return True, f"images on the GPU: {fits}"


def choose_loader(data: Data, device: str) -> tuple[LoaderName, str]:
    """Which loader a recipe gets on a device, and why.

    Raises:
        ValueError: the recipe needs DALI, which cannot run here; says what to install. Or DALI or a CPU, and the
            images on the device.
    """
    needs = [f"data.{key}={value}" for key, value in (("source", data.source), ("downsample", data.downsample))]
    needs = [need for need in needs if need in ("data.source=files", "data.downsample=dali")]
    asked = [*needs, *["data.loader=dali"] * (data.loader == "dali")]
    on_gpu = device.startswith("cuda")
    if data.residence == "device" and (asked or not on_gpu):
        why = f"{asked[0]} is done by DALI" if asked else f"the device is {device}"
        raise ValueError(f"data.residence=device keeps the images of a store on a GPU, but {why}; take auto")
    if needs and data.loader == "plain":
        raise ValueError(f"{needs[0]} is done by DALI, but data.loader=plain; set data.loader=dali")
    if data.loader == "plain" and not on_gpu:
        return "plain", "as data.loader says"
    if on_gpu and not asked:
        return "device", "as a GPU cuts its crops itself"
    reason = why_not_dali(device)
    if reason is None:
        return "dali", "as data.loader says" if data.loader == "dali" else "for it is installed"
    if asked:
        raise ValueError(f"{asked[0]} cannot work here: {reason}")
    return "plain", f"for {reason}"
