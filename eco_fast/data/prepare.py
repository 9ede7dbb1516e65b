"""`eco-fast prepare`: decode images once into a store."""

from collections.abc import Sequence
from pathlib import Path

from rich.progress import track

from eco_fast.data.images import find_images, image_size, read_image
from eco_fast.data.store import Store, Writer, locked
from eco_fast.utils.files import file_stamp, require_space, sha256_of


def prepare(sources: Sequence[str], folder: Path, *, convert_16bit: bool = False, verify: bool = False) -> Store:
    """Decode all images of the sources; continues an interrupted run, and is a no-op on a finished one.

    What is stored stays if its source and its own file have the sizes and modification times that they had; what has
    others is hashed, and decoded again if it differs.

    Args:
        sources: folders, files or "builtin:..." sets.
        folder: the store.
        convert_16bit: see `images.read_image`.
        verify: hash every stored image, whatever its modification time.

    Raises:
        ValueError: a source cannot be used, the disk is too small, or the store holds images that the sources lack.
    """
    found = find_images(sources)
    with locked(folder):
        writer = Writer(folder, {"kind": "hr"})
        if lost := sorted(writer.finished_names - found.keys()):
            raise ValueError(
                f"{folder}: already holds {lost[0]}, which is not among the sources ({len(lost)} such images); "
                "name all sources of the store together, or choose another --store"
            )
        new = [path for name, path in found.items() if name not in writer.known]
        require_space(folder, sum(3 * height * width for height, width in map(image_size, new)), "decoded images")
        for name, path in track(found.items(), description="prepare"):
            stamp = file_stamp(path)
            entry = writer.known.get(name)
            origin = entry.origin if entry and entry.stamp == stamp else sha256_of(path)
            if entry and entry.origin != origin:
                print(f"{path} has changed since it was stored: decoded again", flush=True)
            if not writer.keep(name, origin=origin, stamp=stamp, verify=verify):
                writer.add(name, read_image(path, convert_16bit=convert_16bit), origin=origin, stamp=stamp)
        writer.finish()
    return Store(folder)
