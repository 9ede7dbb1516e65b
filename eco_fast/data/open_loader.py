"""The training's pictures as its recipe wants them read, and the loader that reads them."""

from typing import Any, Literal

from eco_fast.config import Config
from eco_fast.data.encoded import EncodedImages, match_centroids
from eco_fast.data.images import find_images
from eco_fast.data.loader import Loader, PlainLoader
from eco_fast.data.store import Store
from eco_fast.utils.device import why_not_dali

Pictures = Store | EncodedImages


def open_loader(
    config: Config,
    hr: Pictures,
    sr: Pictures | None,
    start: int,
    *,
    device: str,
    label: str,
    rank: int = 0,
    world: int = 1,
) -> Loader[Any]:
    """The loader of a training, from the step `start` on; says which it is and why.

    Raises:
        ValueError: see `choose_loader`.
    """
    name, reason = choose_loader(config, device)
    print(f"{label} loader: {name}, {reason}", flush=True)
    first, second = (pictures.images if isinstance(pictures, Store) else pictures for pictures in (hr, sr))
    if name == "dali":
        from eco_fast.data.dali_loader import DaliLoader  # noqa: PLC0415 - DALI is optional

        assert first is not None  # noqa: S101 - HR is always given
        return DaliLoader(config, first, second, start, device=device, rank=rank, world=world)
    assert not isinstance(first, EncodedImages | None)  # noqa: S101 - files are DALI's
    assert not isinstance(second, EncodedImages)  # noqa: S101
    return PlainLoader(config, first, second, start, rank=rank, world=world)


def choose_loader(config: Config, device: str) -> tuple[Literal["dali", "plain"], str]:
    """Which loader a recipe gets on a device, and why.

    Raises:
        ValueError: the recipe needs DALI, which cannot run here; says what to install.
    """
    data = config.data
    needs = [f"data.{key}={value}" for key, value in (("source", data.source), ("downsample", data.downsample))]
    needs = [need for need in needs if need in ("data.source=encoded", "data.downsample=dali")]
    if data.loader == "plain":
        if needs:
            raise ValueError(f"{needs[0]} is done by DALI, but data.loader=plain; set data.loader=dali")
        return "plain", "as data.loader says"
    reason = why_not_dali(device)
    if reason is None:
        return "dali", "as data.loader says" if data.loader == "dali" else "for it is installed"
    if data.loader == "dali" or needs:
        raise ValueError(f"{[*needs, 'data.loader=dali'][0]} cannot work here: {reason}")
    return "plain", f"for {reason}"


def open_encoded(config: Config) -> EncodedImages:
    """The recipe's HR files.

    Raises:
        ValueError: none are named, or one cannot be decoded at every step; names it.
    """
    if not config.data.train:
        raise ValueError("data.source=encoded reads the files of data.train, which is empty")
    return EncodedImages(find_images(config.data.train))


def open_centroid_files(config: Config, hr: EncodedImages) -> EncodedImages:
    """The files of `data.centroids`, in the order of the HR files; raises as `match_centroids`."""
    return match_centroids(hr, EncodedImages(find_images([config.data.centroids])), config.scale)
