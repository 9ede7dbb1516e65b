"""The loader of a training: which one, and why."""

from typing import Any, Literal

from eco_fast.config import Config, Data
from eco_fast.data.loader import Loader, PlainLoader
from eco_fast.data.sources import ImageSource
from eco_fast.utils import distributed
from eco_fast.utils.device import why_not_dali


def open_loader(
    config: Config, hr: ImageSource, sr: ImageSource | None, start: int, *, device: str, label: str
) -> Loader[Any]:
    """The loader of this rank's share of a training, from the step `start` on; says which it is and why.

    Raises:
        ValueError: see `choose_loader`.
    """
    name, reason = choose_loader(config.data, device)
    print(f"{label} loader: {name}, {reason}", flush=True)
    rank, world_size = distributed.rank(), distributed.world_size()
    if name == "plain":
        return PlainLoader(config, hr, sr, start, rank=rank, world_size=world_size)
    from eco_fast.data.dali_loader import DaliLoader  # noqa: PLC0415 - DALI is optional

    return DaliLoader(config, hr, sr, start, device=device, rank=rank, world_size=world_size)


def choose_loader(data: Data, device: str) -> tuple[Literal["dali", "plain"], str]:
    """Which loader a recipe gets on a device, and why.

    Raises:
        ValueError: the recipe needs DALI, which cannot run here; says what to install.
    """
    needs = [f"data.{key}={value}" for key, value in (("source", data.source), ("downsample", data.downsample))]
    needs = [need for need in needs if need in ("data.source=files", "data.downsample=dali")]
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
