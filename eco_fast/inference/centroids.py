"""The empirical centroids: a teacher's output over every image of a store (paper, section 4)."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from eco_fast_kernels import Rounding
from rich.progress import track

from eco_fast.data.images import about
from eco_fast.data.resize import downsample_image, modcrop
from eco_fast.data.store import Store, Writer, centroid_folder, locked, open_centroids
from eco_fast.inference.consistency import MAX_INCONSISTENCY, inconsistency
from eco_fast.inference.tiling import super_resolve
from eco_fast.models import Network, compile_for_images
from eco_fast.utils import distributed
from eco_fast.utils.device import why_not_compile
from eco_fast.utils.files import require_space, sha256_of


def make_centroids(
    store: Store,
    teacher: Network,
    checkpoint: Path,
    *,
    rounding: Rounding = "uint8",
    tile: int | None = None,
    device: str = "cpu",
    self_ensemble: bool = False,
    compiled: bool = True,
) -> Store:
    """Make SR = teacher(D(HR)) for every HR image, cropped to a multiple of the scale, and store it as 8 bits.

    Continues an interrupted run; makes again only what changed; a no-op where all is there. Ranks share the images.
    A teacher whose output does not look like super-resolution is warned of, not refused: short runs have such teachers.

    Args:
        store: all HR images, as `prepare` made it.
        teacher: in evaluation mode, on `device`; its scale is that of the centroids.
        checkpoint: the file that the teacher was loaded from; its hash is part of the centroids' identity.
        rounding: MATLAB's convention of D.
        tile: LR pixels a side of a tile, bounds the memory; None: the network's own.
        device: where the teacher is.
        self_ensemble: centroids are the mean over the 8 orientations of each image.
        compiled: compile the teacher on a GPU.

    Returns:
        The centroids, uint8 [H, W, 3], in the order of the store.

    Raises:
        ValueError: an image smaller than the scale, or too little space.
    """
    scale, teacher_hash = teacher.scale, sha256_of(checkpoint)
    if compiled and device.startswith("cuda") and "cuda" in teacher.compiled_on and why_not_compile(device) is None:
        compile_for_images(teacher)  # on a CPU it takes longer than it saves
    out = centroid_folder(store.folder, scale, rounding, teacher_hash, self_ensemble=self_ensemble)
    attributes: dict[str, Any] = {
        "kind": "centroids",
        "scale": scale,
        "rounding": rounding,
        "teacher_sha256": teacher_hash,
    }
    attributes |= {"self_ensemble": True} if self_ensemble else {}
    with locked(out) if distributed.is_first() else nullcontext():
        distributed.by_first(
            lambda: len(Writer(out, attributes).known)
        )  # holds the store, and mends what a kill has left
        writer = Writer(out, attributes)
        distributed.gather(None)  # no journal grows before all ranks have read it
        new = [entry for entry in store.entries if entry.name not in writer.known]
        distributed.by_first(lambda: require_space(out, sum(3 * one.height * one.width for one in new), "centroids"))
        if new and distributed.is_first():
            _warn_of(teacher, checkpoint, store, rounding, device)
        entries = distributed.share(zip(store.entries, store.images, strict=True))
        for entry, hr in track(entries, description="centroids"):
            if not writer.keep(entry.name, origin=entry.sha256):
                with about(entry.name):
                    lr = downsample_image(modcrop(hr, scale), scale, rounding)
                sr = super_resolve(teacher, lr, tile=tile, device=device, self_ensemble=self_ensemble)
                writer.add(entry.name, sr, origin=entry.sha256)
        made = {entry.name: entry for part in distributed.gather(writer.entries) for entry in part}
        distributed.by_first(lambda: writer.finish([made[entry.name] for entry in store.entries]))
    return open_centroids(store, out, scale)


def _warn_of(teacher: Network, checkpoint: Path, store: Store, rounding: Rounding, device: str) -> None:
    with about(store.entries[0].name):
        difference = inconsistency(teacher, store.images[0], rounding, device=device)
    if not difference <= MAX_INCONSISTENCY:
        print(
            f"warning: {checkpoint}: its output, downsampled again, differs from its input by {difference:.1f} grey "
            f"levels on average; a trained network for x{teacher.scale} stays below {MAX_INCONSISTENCY:.0f}",
            flush=True,
        )
