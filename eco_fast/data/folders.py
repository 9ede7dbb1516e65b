"""Finding images: in folders with their sub-folders and links, in files, and in the built-in sets."""

import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from eco_fast.data.image_formats import SUFFIXES_OF
from eco_fast.utils import distributed

SUFFIXES = frozenset(suffix for suffixes in SUFFIXES_OF.values() for suffix in suffixes)
SYSTEM_FOLDERS = frozenset(
    name.casefold()
    for name in (
        *("@eaDir", "@tmp", "#recycle", "#snapshot"),  # Synology
        *("@Recycle", "@Recently-Snapshot", "~snapshot"),  # QNAP, NetApp
        *("__MACOSX", "$RECYCLE.BIN", "System Volume Information", "lost+found"),
    )
)
"""Where storage, archives and waste keep thumbnails, metadata and what was deleted."""

# Photographs in scikit-image's wheel, split so that no image (nor its stereo twin) is on two sides.
BUILTIN = {
    "train": (
        "motorcycle_left.png",
        "motorcycle_right.png",
        "rocket.jpg",
        "ihc.png",
        "retina.jpg",
        "hubble_deep_field.jpg",
        "brick.png",
        "grass.png",
        "gravel.png",
        "coins.png",
        "moon.png",
    ),
    "validation": ("camera.png",),
    "test": ("astronaut.png", "chelsea.png", "coffee.png"),
}


def find_images(sources: Sequence[str | Path]) -> dict[str, Path]:
    """All images in folders (with their sub-folders), single files and built-in sets, in a fixed order.

    Links are followed; a folder that is reached again, as by a link to one around it, is not entered again. Hidden
    files and folders, `SYSTEM_FOLDERS`, run folders and files of other kinds are left out, and one line counts them.

    Returns:
        A mapping from names ("FOLDER/sub/file.png") to paths.

    Raises:
        ValueError: a source is missing, empty or cannot be read, or two images have the same name.
    """
    found: dict[str, Path] = {}
    for source in sources:
        for name, path in _find_in(str(source)):
            if name in found and found[name] != path:
                raise ValueError(f"{path} and {found[name]} would both be called {name}; rename one of their folders")
            found[name] = path
    return found


def builtin_images(group: str) -> list[tuple[str, Path]]:
    """The built-in photographs of a group: train, validation or test."""
    if group not in BUILTIN:
        raise ValueError(f"builtin:{group}: the built-in sets are {', '.join('builtin:' + name for name in BUILTIN)}")
    package = find_spec("skimage")
    assert package is not None, "scikit-image is a dependency"  # an invariant of the installation
    assert package.origin is not None
    folder = Path(package.origin).parent / "data"
    return [(f"builtin/{name}", folder / name) for name in BUILTIN[group]]


def _find_in(source: str) -> list[tuple[str, Path]]:
    if source.startswith("builtin:"):
        return builtin_images(source.removeprefix("builtin:"))
    path = Path(source)
    if path.is_file():
        return [(f"{path.resolve().parent.name}/{path.name}", path)]
    if not path.is_dir():
        raise ValueError(f"{source}: there is no such file or folder")
    walk = _Walk(path)
    root = path.resolve().name
    found = [(f"{root}/{file.relative_to(path).as_posix()}", file) for file in sorted(walk.files())]
    if not found:
        left_out = f"; {walk.summary()}" if walk.left_out else ""
        raise ValueError(f"{source}: holds no images ({', '.join(sorted(SUFFIXES))}){left_out}")
    if walk.left_out and distributed.is_main_process():
        _say_once(f"{source}: {walk.summary()}")
    return found


@cache
def _say_once(line: str) -> None:
    print(line, flush=True)


class _Walk:
    """One walk over a folder: what it finds, and what it leaves out, by reason."""

    def __init__(self, root: Path) -> None:
        self.left_out: Counter[str] = Counter()
        self._links = deque([root])
        self._entered = set(root.resolve().parents)

    def files(self) -> Iterator[Path]:
        """The image files. Real folders go before linked ones, and keep their names if a link to them is made."""
        while self._links:
            folders = [self._links.popleft()]
            while folders:
                folder = folders.pop()
                if (real := folder.resolve()) in self._entered:
                    self.left_out["links to folders that are there already"] += 1
                    continue
                self._entered.add(real)
                yield from self._enter(folder, folders)

    def summary(self) -> str:
        """What was left out, and how often."""
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(self.left_out.items()))
        return f"{self.left_out.total()} left out ({reasons})"

    def _enter(self, folder: Path, folders: list[Path]) -> Iterator[Path]:
        """The images in one folder; further real folders are added to `folders`, linked ones to the queue."""
        entries = _list_folder(folder)
        if {"config.toml", "checkpoints"} <= {entry.name for entry in entries}:
            self.left_out["run folders"] += 1
            return
        for entry in entries:
            path = folder / entry.name
            if entry.name.startswith("."):
                self.left_out["hidden"] += 1
            elif entry.is_dir():
                if entry.name.casefold() in SYSTEM_FOLDERS:
                    self.left_out[f"{entry.name}/"] += 1
                else:
                    (self._links if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() not in ("", *SUFFIXES):
                self.left_out[path.suffix.lower()] += 1
            elif entry.is_symlink() and not path.exists():
                raise ValueError(f"{path}: a link to something that is not there; mend or remove it")
            elif not entry.is_file():
                self.left_out["not regular files"] += 1
            elif path.suffix:
                yield path
            else:
                self.left_out["without a suffix"] += 1


def _list_folder(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise ValueError(f"{folder}: the folder cannot be read ({error.strerror})") from error
