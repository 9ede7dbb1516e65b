"""`eco-fast upscale`: apply a checkpoint to images of any size."""

from pathlib import Path

from rich.progress import track

from eco_fast.data.images import SUFFIXES, find_images, read_image, write_png
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
    targets = outputs(source, out)
    for path, target in track(list(targets.items()), description="upscale"):
        write_png(target, super_resolve(network, read_image(path), tile=tile, device=where))
    return list(targets.values())


def outputs(source: Path, out: Path) -> dict[Path, Path]:
    """The PNG file that each image of the source becomes.

    Raises:
        ValueError: no images, no place for them, or a file that two would become or that is one of them.
    """
    if not source.exists():
        raise ValueError(f"{source}: there is no such file or folder")
    found = list(find_images([source]).values())
    if source.is_file():
        if out.suffix.lower() in SUFFIXES - {".png"} and not out.is_dir():
            raise ValueError(f"{out}: images are written as PNG; name a .png file or a folder")
        targets = {source: out if out.suffix.lower() == ".png" and not out.is_dir() else out / f"{source.stem}.png"}
    elif out.is_file():
        raise ValueError(f"{out}: a file, but the images of a folder need a folder to go to")
    else:
        targets = {path: (out / path.relative_to(source)).with_suffix(".png") for path in found}
    originals = {path.resolve() for path in found}
    seen: dict[Path, Path] = {}
    for path, target in targets.items():
        if target.resolve() in originals:
            raise ValueError(f"{target} would be overwritten, but it is an image to read; choose another output")
        if target in seen:
            raise ValueError(f"{path} and {seen[target]} would both become {target}; rename one of them")
        seen[target] = path
    return targets
