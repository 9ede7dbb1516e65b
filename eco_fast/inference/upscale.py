"""`eco-fast upscale`, and its images as arrays: a network applied to images of any size."""

from dataclasses import replace
from pathlib import Path
from typing import overload

from torch import Tensor

from eco_fast.data.images import Pixels, WholeImage, read_whole, write_whole
from eco_fast.data.output_paths import output_paths
from eco_fast.data.resize import to_pixels, to_tensor, upsample
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.inference.whole_images import largest_tile, ready, whole_images
from eco_fast.models import Network, load_network
from eco_fast.utils.progress import track


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
    network = ready(load_network(checkpoint, device))
    (targets,) = output_paths(source, [out])
    with whole_images():
        tile = tile or largest_tile(network)
        for path, target in track(list(targets.items()), description="upscale"):
            lr = read_whole(path)
            lr.say_what_is_lost(path)
            sr = super_resolve(network, lr.colours, tile=tile)
            write_whole(target, replace(lr, colours=sr, opacity=_larger_opacity(lr, network.scale)))
    return list(targets.values())


@overload
def super_resolve(
    network: Network, image: Pixels, *, tile: int | None = None, self_ensemble: bool = False
) -> Pixels: ...
@overload
def super_resolve(
    network: Network, image: Tensor, *, tile: int | None = None, self_ensemble: bool = False
) -> Tensor: ...
def super_resolve(
    network: Network, image: Pixels | Tensor, *, tile: int | None = None, self_ensemble: bool = False
) -> Pixels | Tensor:
    """Upscale one image in true float32, in tiles that leave no seams, as `eco-fast upscale` does.

    Args:
        network: on any device; it is put into evaluation mode.
        image: RGB, uint8 [h, w, 3], an array, or a tensor on any device.
        tile: LR pixels a side of a tile, which bounds the memory; None: the network's own, mostly 256.
        self_ensemble: take the mean over the 8 orientations of the image (EDSR's paper, section 3.4).

    Returns:
        uint8 [scale*h, scale*w, 3], rounded: an array of an array, of a tensor a tensor on the network's device.

    Raises:
        ValueError: the image is of another dtype or shape, or a tile is empty.
    """
    if str(image.dtype).removeprefix("torch.") != "uint8" or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"expected an RGB image, uint8 [h, w, 3], got {image.dtype} {list(image.shape)}")
    if tile is not None and tile < 1:
        raise ValueError(f"tile: expected at least 1 pixel, got {tile}")
    device = next(network.parameters()).device
    lr = image.to(device) if isinstance(image, Tensor) else to_tensor(image, device)
    with whole_images():
        sr = upscale_tiled(ready(network), lr, tile=tile, self_ensemble=self_ensemble)
    return sr if isinstance(image, Tensor) else to_pixels(sr)


def _larger_opacity(lr: WholeImage, scale: int) -> Pixels | None:
    if lr.opacity is None:
        return None
    return to_pixels(upsample(to_tensor(lr.opacity[None, :, :, None]), scale)[0, :, :, 0])
