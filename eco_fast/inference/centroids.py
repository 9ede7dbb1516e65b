"""The empirical centroids: a teacher's output over every image of a store (paper, section 4)."""

from contextlib import nullcontext
from pathlib import Path

from eco_fast_kernels import Rounding, imresize

from eco_fast.data.centroid_store import centroid_folder, open_centroids, teacher_hash
from eco_fast.data.decode import Stored, still_intact
from eco_fast.data.images import Pixels, prefix_errors
from eco_fast.data.resize import modcrop, to_pixels, to_tensor
from eco_fast.data.store import Store, locked
from eco_fast.data.store_writer import Wanted, Writer
from eco_fast.inference.consistency import MAX_INCONSISTENCY, inconsistency
from eco_fast.inference.tiling import upscale_tiled
from eco_fast.inference.whole_images import largest_tile, ready, whole_images
from eco_fast.models import Network, compile_for_images
from eco_fast.utils import distributed
from eco_fast.utils.device import why_not_compile
from eco_fast.utils.files import file_stamp, require_space
from eco_fast.utils.progress import track


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
    verify: bool = False,
) -> Store:
    """Make SR = teacher(D(HR)) for every HR image, cropped to a multiple of the scale, and store it as 8 bits.

    Continues an interrupted run; makes again only what changed; a no-op where all is there. Ranks share the images.
    Everything happens on the teacher's device, in true float32. A teacher whose output does not look like
    super-resolution is warned of, not refused: short runs have such teachers.

    Args:
        store: made by `prepare`.
        teacher: on `device`; its scale is that of the centroids.
        checkpoint: the teacher's file; its hash is part of the centroids' identity.
        rounding: MATLAB's convention of D.
        tile: LR pixels a side of a tile; None: as many as a GPU's memory takes, the network's own on a CPU.
        device: where the teacher is.
        self_ensemble: centroids are the mean over the 8 orientations of each image.
        compiled: compile the teacher on a GPU.
        verify: hash every stored centroid, whatever its modification time.

    Returns:
        The centroids, in the order of the store.

    Raises:
        ValueError: too little space, another process is making them, or not all ranks see their folder.
    """
    scale = ready(teacher).scale
    sha256 = teacher_hash(store.folder, scale, rounding, checkpoint)
    out = centroid_folder(store.folder, scale, rounding, sha256, self_ensemble=self_ensemble)
    attributes = {"kind": "centroids", "scale": scale, "rounding": rounding, "teacher_sha256": sha256}
    attributes |= {"teacher_stamp": file_stamp(checkpoint)} | ({"self_ensemble": True} if self_ensemble else {})
    with whole_images(), locked(out) if distributed.is_main_process() else nullcontext():
        tile = tile or largest_tile(teacher)
        pays = "cuda" in teacher.compiled_on and teacher.compiled_for_images
        if compiled and device.startswith("cuda") and pays and why_not_compile(device) is None:
            compile_for_images(teacher)  # on a CPU it takes longer than it saves
        distributed.on_rank0(lambda: Writer(out, attributes).finished_names)  # mends what a kill has left
        with Writer(out, attributes) as writer:
            distributed.all_gather(None)  # no journal grows before all ranks have read it
            missing = _plan(writer, store, scale, verify=verify)
            if missing and distributed.is_main_process():
                _warn_of(teacher, checkpoint, store, rounding)
            for index in track(distributed.shard(missing), "centroids"):
                with prefix_errors(store.entries[index].name):
                    centroid = centroid_of(teacher, store.images[index], rounding, tile, self_ensemble=self_ensemble)
                writer.add(index, centroid)
            writer.sync()
            for added, rows in distributed.all_gather((writer.added, writer.rows[writer.added])):
                writer.rows[added] = rows
            distributed.on_rank0(writer.finish)
    return open_centroids(store, out, scale)


def centroid_of(teacher: Network, hr: Pixels, rounding: Rounding, tile: int, *, self_ensemble: bool = False) -> Pixels:
    """SR = teacher(D(HR)) of one image, as 8 bits; inside `whole_images`.

    Args:
        teacher: `ready`, on the device that makes it.
        hr: uint8 [H, W, 3].
        rounding: MATLAB's convention of D.
        tile: LR pixels a side of a tile.
        self_ensemble: the mean over the 8 orientations.

    Returns:
        uint8, H and W cropped to multiples of the scale.
    """
    device = next(teacher.parameters()).device
    (lr,) = imresize(to_tensor(modcrop(hr, teacher.scale), str(device))[None], teacher.scale, rounding)
    return to_pixels(upscale_tiled(teacher, lr, tile=tile, self_ensemble=self_ensemble))


def _plan(writer: Writer, store: Store, scale: int, *, verify: bool) -> list[int]:
    """Indices of the centroids that are missing or damaged, the same on every rank; says what they need."""
    mine = distributed.shard(writer.doubtful(verify=verify))
    out = writer.folder
    intact = [still_intact(Stored(out / one.file, one.offset, one.size, one.sha256)) for one in mine]
    found = [one.name for one, whole in zip(mine, intact, strict=True) if not whole]
    damaged = [name for names in distributed.all_gather(found) for name in names]
    sizes = (store.entries.sizes() // scale * scale).prod(axis=1) * 3
    wanted = [
        Wanted(name=entry.name, size=size, origin=entry.sha256)
        for entry, size in zip(store.entries, sizes.tolist(), strict=True)
    ]
    missing = writer.plan(wanted, damaged)
    if any(distributed.all_gather(bool(missing))):
        distributed.check_shared(out)
    distributed.on_rank0(lambda: require_space(out, int(sizes[missing].sum()), "centroids"))
    return missing


def _warn_of(teacher: Network, checkpoint: Path, store: Store, rounding: Rounding) -> None:
    with prefix_errors(store.entries[0].name):
        difference = inconsistency(teacher, store.images[0], rounding)
    if not difference <= MAX_INCONSISTENCY:
        print(
            f"warning: {checkpoint}: its output, downsampled again, differs from its input by {difference:.1f} grey "
            f"levels on average; a trained network for x{teacher.scale} stays below {MAX_INCONSISTENCY:.0f}",
            flush=True,
        )
