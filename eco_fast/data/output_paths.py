"""Where `upscale`, `downsample` and others write: names that fit, and that no two images share."""

import hashlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path

from eco_fast.data.folders import SUFFIXES, find_images

LONGEST_NAME = 255  # bytes, of all usual file systems
LONGEST_STEM = 200  # so that more can be added to it
DIGITS = 12  # of a hash in a name


def name_outputs(wanted: Mapping[str, Path], longest: int = LONGEST_NAME) -> dict[str, Path]:
    """The file that each image gets, from the one that it would have if it were alone.

    A name that is too long, or that another image would have too (also where upper and lower case are the same), gets
    a hash of its image's name.

    Args:
        wanted: by image.
        longest: bytes of a name.
    """
    rivals = Counter(map(_folded, wanted.values()))
    return {
        name: path if rivals[_folded(path)] == 1 and _bytes_of(path.name) <= longest else _hashed(path, name, longest)
        for name, path in wanted.items()
    }


def flat_stems(names: Iterable[str]) -> dict[str, str]:
    """For each image a stem of file names in one folder: "set_sub_a" for "set/sub/a.png"; as `name_outputs`."""
    wanted = {name: Path(Path(name).with_suffix("").as_posix().replace("/", "_")) for name in names}
    return {name: path.name for name, path in name_outputs(wanted, LONGEST_STEM).items()}


def output_paths(source: Path, outs: list[Path]) -> list[dict[Path, Path]]:
    """For each output, the PNG file that each image of the source becomes.

    Raises:
        ValueError: no images, no place for them, or a file that is one of them.
    """
    found = list(find_images([source]).values())
    originals = {path.resolve() for path in found}
    every = []
    for out in outs:
        targets = _targets(source, found, out)
        for target in targets.values():
            if target.resolve() in originals:
                raise ValueError(f"{target} would be overwritten, but it is an image to read; choose another output")
        every.append(targets)
    return every


def _targets(source: Path, found: list[Path], out: Path) -> dict[Path, Path]:
    if source.is_file():
        if out.suffix.lower() in SUFFIXES - {".png"} and not out.is_dir():
            raise ValueError(f"{out}: images are written as PNG; name a .png file or a folder")
        return {source: out if out.suffix.lower() == ".png" and not out.is_dir() else out / f"{source.stem}.png"}
    if out.is_file():
        raise ValueError(f"{out}: a file, but the images of a folder need a folder to go to")
    names = {path.relative_to(source).as_posix(): path for path in found}
    outputs = name_outputs({name: (out / name).with_suffix(".png") for name in names})
    return {names[name]: target for name, target in outputs.items()}


def _folded(path: Path) -> str:
    return unicodedata.normalize("NFC", str(path)).casefold()


def _bytes_of(name: str) -> int:
    return len(os.fsencode(name))


def _hashed(path: Path, name: str, longest: int) -> Path:
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:DIGITS]
    suffix = path.suffix if path.suffix == ".png" else ""
    stem = os.fsencode(path.name.removesuffix(suffix))[: longest - _bytes_of(suffix) - DIGITS - 1]
    return path.with_name(f"{stem.decode(errors='ignore')}-{digest}{suffix}")  # without a character that was cut
