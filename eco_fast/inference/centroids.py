"""`eco-fast teach`: the teacher's output over every image of a store, the empirical centroids (paper, section 4)."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

from eco_fast_kernels import Rounding

from eco_fast.config import Scale
from eco_fast.data.images import about
from eco_fast.data.resize import downsample_image, modcrop
from eco_fast.data.store import Store, Writer, centroid_folder, locked
from eco_fast.inference.consistency import MAX_INCONSISTENCY, inconsistency
from eco_fast.inference.tiling import super_resolve
from eco_fast.models import Network, compile_for_images, load_network_of_scale
from eco_fast.utils import distributed
from eco_fast.utils.device import pick_device, why_not_compile
from eco_fast.utils.files import require_space, sha256_of
from eco_fast.utils.progress import progress


def teach(
    folder: Path,
    checkpoint: Path,
    scale: Scale,
    *,
    rounding: Rounding = "uint8",
    tile: int | None = None,
    device: str = "auto",
    self_ensemble: bool = False,
    compiled: bool = True,
) -> Path:
    """Make SR = teacher(D(HR)) for every HR image, cropped to a multiple of the scale, and store it as 8 bits.

    Continues an interrupted run; makes again only what changed; a no-op where all is there. Ranks share the images.
    A teacher whose output does not look like super-resolution is warned of, not refused: short runs have such teachers.

    Args:
        folder: a store made by `prepare`.
        checkpoint: the teacher's weights; their hash is part of the centroids' identity.
        scale: must be the teacher's.
        rounding: MATLAB's convention of D.
        tile: LR pixels a side of a tile, bounds the memory; None: the network's own.
        device: "auto", "cpu", "cuda", ...
        self_ensemble: centroids are the mean over the 8 orientations of each image.
        compiled: compile the teacher on a GPU.

    Returns:
        The folder of the centroids.

    Raises:
        ValueError: no store, not a teacher, another scale, or too little space.
    """
    store = Store(folder)
    where = pick_device(device)
    network = load_network_of_scale(checkpoint, scale).to(where)
    if compiled and where.startswith("cuda") and "cuda" in network.compiled_on and why_not_compile(where) is None:
        compile_for_images(network)  # on a CPU it takes longer than it saves
    teacher_hash = sha256_of(checkpoint)
    out = centroid_folder(folder, scale, rounding, teacher_hash, self_ensemble=self_ensemble)
    with locked(out) if distributed.is_first() else nullcontext():
        attributes: dict[str, Any] = {
            "kind": "centroids",
            "scale": scale,
            "rounding": rounding,
            "teacher_sha256": teacher_hash,
        }
        attributes |= {"self_ensemble": True} if self_ensemble else {}
        distributed.by_first(
            lambda: len(Writer(out, attributes).known)
        )  # holds the store, and mends what a kill has left
        writer = Writer(out, attributes)
        distributed.gather(None)  # no journal grows before all ranks have read it
        new = [entry for entry in store.entries if entry.name not in writer.known]
        distributed.by_first(lambda: require_space(out, sum(3 * one.height * one.width for one in new), "centroids"))
        if new and distributed.is_first():
            _warn_of(network, checkpoint, store, rounding, where)
        for entry, hr in progress(distributed.share(zip(store.entries, store.images, strict=True)), "teach"):
            if not writer.keep(entry.name, origin=entry.sha256):
                with about(entry.name):
                    lr = downsample_image(modcrop(hr, scale), scale, rounding)
                sr = super_resolve(network, lr, tile=tile, device=where, self_ensemble=self_ensemble)
                writer.add(entry.name, sr, origin=entry.sha256)
        made = {entry.name: entry for part in distributed.gather(writer.entries) for entry in part}
        distributed.by_first(lambda: writer.finish([made[entry.name] for entry in store.entries]))
    return out


def _warn_of(network: Network, checkpoint: Path, store: Store, rounding: Rounding, device: str) -> None:
    with about(store.entries[0].name):
        difference = inconsistency(network, store.images[0], rounding, device=device)
    if not difference <= MAX_INCONSISTENCY:
        print(
            f"warning: {checkpoint}: its output, downsampled again, differs from its input by {difference:.1f} grey "
            f"levels on average; a trained network for x{network.scale} stays below {MAX_INCONSISTENCY:.0f}",
            flush=True,
        )
