"""`eco-fast upscale`: apply a checkpoint to images of any size."""

from pathlib import Path

from rich.progress import track

from eco_fast.data.images import read_image, write_png
from eco_fast.data.output_paths import output_paths
from eco_fast.inference.tiling import super_resolve
from eco_fast.models import load_network
from eco_fast.utils.device import pick_device


def upscale(checkpoint: Path, source: Path, out: Path, *, tile: int | None = None, device: str = "auto") -> list[Path]:
    """Upscale an image, or all images of a folder with its sub-folders, into PNG files.

    Args:
        checkpoint: the network.
        source: an image or a folder.
        out: the PNG to write for an image (or a folder to put it in), the folder for a folder.
        tile: LR pixels a side of a tile, bounds the memory; None: the network's own.
        device: "auto", "cpu", "cuda", ...

    Returns:
        The files written.

    Raises:
        ValueError: a bad checkpoint, image or output; names it.
    """
    where = pick_device(device)
    network = load_network(checkpoint).to(where)
    targets = output_paths(source, out)
    for path, target in track(list(targets.items()), description="upscale"):
        write_png(target, super_resolve(network, read_image(path), tile=tile, device=where))
    return list(targets.values())
