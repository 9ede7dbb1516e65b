"""`eco-fast prepare`: decode pictures once into a store."""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from eco_fast.data.images import find_images, image_size, read_image
from eco_fast.data.store import Store, Writer, locked
from eco_fast.utils.files import require_space, sha256_of


def prepare(sources: Sequence[str], folder: Path, *, convert_16bit: bool = False) -> Store:
    """Decode all pictures of the sources; continues an interrupted run, and is a no-op on a finished one.

    Every picture that is already stored is verified against its hash; a damaged one, and one whose source has changed,
    is decoded again.

    Args:
        sources: folders, files or "builtin:..." sets.
        folder: the store.
        convert_16bit: see `images.read_image`.

    Raises:
        ValueError: a source cannot be used, the disk is too small, or the store holds pictures that the sources lack.
    """
    found = find_images(sources)
    with locked(folder):
        writer = Writer(folder, {"kind": "hr"})
        if lost := sorted(writer.finished_names - found.keys()):
            raise ValueError(
                f"{folder}: already holds {lost[0]}, which is not among the sources ({len(lost)} such pictures); "
                "name all sources of the store together, or choose another --store"
            )
        new = [path for name, path in found.items() if name not in writer.known]
        require_space(folder, sum(3 * height * width for height, width in map(image_size, new)), "decoded pictures")
        for name, path in track(found.items(), description="prepare"):
            status = path.stat()
            stamp = f"{status.st_size} {status.st_mtime_ns}"
            entry = writer.known.get(name)
            origin = entry.origin if entry and entry.stamp == stamp else sha256_of(path)
            if entry and entry.origin != origin:
                print(f"{path} has changed since it was stored: decoded again", flush=True)
            if not writer.keep(name, origin=origin, stamp=stamp):
                writer.add(name, read_image(path, convert_16bit=convert_16bit), origin=origin, stamp=stamp)
        writer.finish()
    return Store(folder)
