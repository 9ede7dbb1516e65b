"""The centroids of a store: where they are, and whether they are those of its images as they are now."""

from pathlib import Path

import numpy as np

from eco_fast.data.store import Store, read_manifest
from eco_fast.utils.files import file_stamp, sha256_of


def centroid_folder(store: Path, scale: int, rounding: str, teacher_hash: str, *, self_ensemble: bool) -> Path:
    """Where a teacher's outputs over a store are kept."""
    ensemble = "-ensemble" if self_ensemble else ""
    return store / "centroids" / f"x{scale}-{rounding}-{teacher_hash[:16]}{ensemble}"


def teacher_hash(store: Path, scale: int, rounding: str, checkpoint: Path) -> str:
    """SHA-256 of a teacher's file: as finished centroids of it noted for this size and time, or else by reading it."""
    stamp = file_stamp(checkpoint)
    for folder in sorted((store / "centroids").glob(f"x{scale}-{rounding}-*")):
        made = read_manifest(folder)
        if made is not None and made["attributes"].get("teacher_stamp") == stamp:
            return str(made["attributes"]["teacher_sha256"])
    return sha256_of(checkpoint)


def open_centroids(store: Store, folder: Path, scale: int) -> Store:
    """Open centroids and check that they were made from the store as it is now.

    Raises:
        ValueError: they were not; names the first image that differs.
    """
    centroids = Store(folder)
    if _are_those_of(centroids, store, scale):
        return centroids
    made_from = {entry.name: entry for entry in centroids.entries}
    for entry in store.entries:
        centroid = made_from.get(entry.name)
        if centroid is None or centroid.origin != entry.sha256:
            raise ValueError(
                f"{store.folder}: {entry.name} has changed since its centroid was made; run `eco-fast centroids` again"
            )
        expected = (entry.height // scale * scale, entry.width // scale * scale)
        if (centroid.height, centroid.width) != expected:
            raise ValueError(f"{folder}: the centroid of {entry.name} does not have the size of its HR image")
    return centroids.select(store.entries.names())


def _are_those_of(centroids: Store, store: Store, scale: int) -> bool:
    """Whether they are, one for one and in the same order; by columns, since there may be a million."""
    made, hr = centroids.entries, store.entries
    return (
        made.names() == hr.names()
        and np.array_equal(made.column("origin"), hr.column("sha256"))
        and np.array_equal(made.sizes(), hr.sizes() // scale * scale)
    )
