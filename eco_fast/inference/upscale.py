"""`eco-fast upscale`: apply a checkpoint to images of any size."""

from dataclasses import replace
from pathlib import Path

from rich.progress import track

from eco_fast.data.images import Pixels, WholeImage, read_whole, write_whole
from eco_fast.data.output_paths import output_paths
from eco_fast.data.resize import to_pixels, to_tensor, upsample
from eco_fast.inference.tiling import super_resolve
from eco_fast.inference.whole_images import largest_tile, ready, whole_images
from eco_fast.models import Network, load_network
from eco_fast.utils.device import pick_device


def upscale(checkpoint: Path, source: Path, out: Path, *, tile: int | None = None, device: str = "auto") -> list[Path]:
    """Upscale an image, or all images of a folder with its sub-folders, into PNG files.

    Transparency is resized bicubically; it and the colour profile go into the file.

    Args:
        checkpoint: the network.
        source: an image or a folder.
        out: the PNG to write for an image (or a folder to put it in), the folder for a folder.
        tile: LR pixels a side of a tile; None: as many as a GPU's memory takes, the network's own on a CPU.
        device: "auto", "cpu", "cuda", ...

    Returns:
        The files written.

    Raises:
        ValueError: a bad checkpoint, image or output; names it.
    """
    where = pick_device(device)
    network = ready(load_network(checkpoint).to(where))
    (targets,) = output_paths(source, [out])
    with whole_images():
        tile = tile or largest_tile(network)
        for path, target in track(list(targets.items()), description="upscale"):
            lr = read_whole(path)
            lr.say_what_is_lost(path)
            sr = upscale_image(network, lr.colours, tile=tile)
            write_whole(target, replace(lr, colours=sr, opacity=_larger_opacity(lr, network.scale)))
    return list(targets.values())


def upscale_image(network: Network, lr: Pixels, *, tile: int | None = None, self_ensemble: bool = False) -> Pixels:
    """`super_resolve` of an image that comes from a file and goes to one, on the network's device."""
    image = to_tensor(lr, next(network.parameters()).device)
    return to_pixels(super_resolve(network, image, tile=tile, self_ensemble=self_ensemble))


def _larger_opacity(lr: WholeImage, scale: int) -> Pixels | None:
    if lr.opacity is None:
        return None
    return to_pixels(upsample(to_tensor(lr.opacity[None, :, :, None]), scale)[0, :, :, 0])
