"""Where `upscale` and `downsample` write."""

from pathlib import Path

from eco_fast.data.images import SUFFIXES, find_images


def output_paths(source: Path, out: Path) -> dict[Path, Path]:
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
