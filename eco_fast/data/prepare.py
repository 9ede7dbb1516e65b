"""`eco-fast prepare`: decode images once into a store, on all cores."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from eco_fast.data.decode import Stored, Task, decode, pixel_bytes, still_intact
from eco_fast.data.folders import find_images
from eco_fast.data.store import Store, locked
from eco_fast.data.store_writer import Wanted, Writer
from eco_fast.utils.files import file_stamp, require_space, sha256_of
from eco_fast.utils.progress import track
from eco_fast.utils.workers import Answer, Item, cores, in_parallel

WORKER_BYTES = 64_000_000  # of pixels, which take about a second: less is not worth a process
HEADERS_A_WORKER = 2000  # take about as long


def prepare(
    sources: Sequence[str],
    folder: Path,
    *,
    convert_16bit: bool = False,
    verify: bool = False,
    workers: int | None = None,
) -> Store:
    """Decode all images of the sources; continues an interrupted run, and is a no-op on a finished one.

    What is stored stays if its source and its pack have the sizes and modification times that they had; what has
    others is hashed, and decoded again if it differs. The store is the same whatever the number of processes.

    Args:
        sources: folders, files or "builtin:..." sets.
        folder: the store.
        convert_16bit: see `images.read_image`.
        verify: hash every stored image, whatever its modification time.
        workers: processes at most; None: one per core. Few images take fewer.

    Raises:
        ValueError: a source cannot be used, the disk is too small, or the store holds images that the sources lack.
    """
    found = find_images(sources)
    limit = workers or cores()
    with locked(folder), Writer(folder, {"kind": "hr"}) as writer:
        if lost := sorted(writer.finished_names - found.keys()):
            raise ValueError(
                f"{folder}: already holds {lost[0]}, which is not among the sources ({len(lost)} such images); "
                "name all sources of the store together, or choose another --store"
            )
        damaged = _damaged(writer, folder, limit, verify=verify)
        wanted = _wanted(writer, found, damaged, limit)
        missing = writer.plan(wanted, damaged)
        needed = sum(wanted[index].size for index in missing)
        require_space(folder, needed, "decoded images")
        tasks = [
            Task(found[wanted[index].name], *writer.place(index), wanted[index].size, convert_16bit)
            for index in missing
        ]
        for place, made in _each(decode, tasks, limit, needed // WORKER_BYTES, "prepare"):
            writer.note(missing[place], made.shape, made.sha256, made.origin)
        writer.finish()
    return Store(folder)


def _damaged(writer: Writer, folder: Path, limit: int, *, verify: bool) -> list[str]:
    """Names of stored images whose pixels are no longer what they were."""
    doubtful = writer.doubtful(verify=verify)
    stored = [Stored(folder / entry.file, entry.offset, entry.size, entry.sha256) for entry in doubtful]
    worth = sum(one.size for one in stored) // (WORKER_BYTES * 10)  # hashing is that much faster than decoding
    intact = _each(still_intact, stored, limit, worth, "verify")
    return sorted(doubtful[place].name for place, whole in intact if not whole)


def _wanted(writer: Writer, found: Mapping[str, Path], damaged: Sequence[str], limit: int) -> list[Wanted]:
    """What the store is to hold, in order; only new and changed sources are opened."""
    wanted: dict[str, Wanted] = {}
    opened: list[str] = []
    again = set(damaged)
    for name, path in found.items():
        stamp, entry = file_stamp(path), writer.known(name)
        origin = entry.origin if entry and entry.stamp == stamp else sha256_of(path) if entry else ""
        if entry and origin != entry.origin:
            print(f"{path} has changed since it was stored: decoded again", flush=True)
        kept = entry is not None and origin == entry.origin and name not in again
        wanted[name] = Wanted(name=name, size=entry.size if entry and kept else 0, origin=origin, stamp=stamp)
        if not kept:
            opened.append(name)
    paths = [found[name] for name in opened]
    for place, size in _each(pixel_bytes, paths, limit, len(paths) // HEADERS_A_WORKER, "sizes"):
        one = wanted[opened[place]]
        wanted[one.name] = Wanted(name=one.name, size=size, origin="", stamp=one.stamp)
    return list(wanted.values())


def _each(
    function: Callable[[Item], Answer], items: Sequence[Item], limit: int, worth: int, description: str
) -> Iterator[tuple[int, Answer]]:
    """Results of all items, with a progress bar, by as many processes as are allowed and worth their start."""
    if not items:
        return
    results = in_parallel(function, items, min(limit, worth))
    yield from track(results, total=len(items), description=description)
