"""The machine: folders, locks, limits, clock. Nothing here needs torch."""

import fcntl
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from eco_fast.training.doctor.findings import Check, Fact, Finding, Notes, Subject
from eco_fast.utils.files import NO_FOLDER_SYNC, size_in_words
from eco_fast.utils.locks import NO_FLOCK

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - the system's own, for memory that processes share
MOST_MAPS = Path("/proc/sys/vm/max_map_count")
ENOUGH_FREE = 1_000_000_000  # bytes: some checkpoints of the largest shipped network
ENOUGH_SHARED = 1 << 30  # bytes, what NCCL's documentation asks containers for
ENOUGH_MAPS = 65530  # the kernel's default
WRITTEN = 1 << 17  # bytes: more than a file system keeps beside its names, and what DALI writes of a graph
CLOCKS_APART = 60.0  # seconds
BEFORE_US = datetime(2026, 1, 1, tzinfo=UTC)


class Limit(NamedTuple):
    """A limit of processes that a shell inherits to its programs."""

    name: str
    which: int
    enough: float
    why: str
    mend: str


LIMITS = (
    Limit(
        "open files",
        resource.RLIMIT_NOFILE,
        1024,
        "a training holds hundreds: its packs, pipes to the compilers and loaders, sockets to other processes",
        "ulimit -n 4096",
    ),
    Limit(
        "address space",
        resource.RLIMIT_AS,
        float("inf"),
        "stores are mapped whole, and CUDA reserves more addresses than there is memory: both fail with ENOMEM",
        "ulimit -v unlimited",
    ),
    Limit(
        "size of a file",
        resource.RLIMIT_FSIZE,
        float("inf"),
        "packs of a store and checkpoints grow to gigabytes, and writing beyond the limit fails like a full disk",
        "ulimit -f unlimited",
    ),
    Limit(
        "processes and threads",
        resource.RLIMIT_NPROC,
        1024,
        "torch, its compiler and the loaders start a thread for each core, and die where they get none",
        "ulimit -u 4096",
    ),
)


def checks(_: Subject) -> list[Check]:
    """What is looked at."""
    return [disk, temporary_files, caches, locks, fsync, shared_memory, limits, clock]


def disk(subject: Subject) -> Notes:
    """Room, and whether anything can be written."""
    for folder in subject.paths:
        free = shutil.disk_usage(folder).free
        yield Fact(f"free in {folder}", size_in_words(free))
        if free < ENOUGH_FREE:
            yield Finding(
                f"only {size_in_words(free)} are free in {folder}",
                "checkpoints, decoded images and centroids go there; a training stops where nothing can be written",
                f"make room (du -xsh {folder}/* | sort -h), or name another folder: eco-fast train --run DIR",
            )
        if not os.statvfs(folder).f_favail and os.statvfs(folder).f_files:
            yield Finding(
                f"no more files can be made in {folder}: its disk has no inode left",
                "a training writes a new file for each checkpoint",
                "remove files that nobody needs (df -i shows the disks), or name another folder",
            )
        if why := why_not_written(folder):
            yield Finding(
                f"{folder} cannot be written ({why})",
                "runs and stores are written there",
                "let it be writable (chmod u+w, mount -o remount,rw), or name another folder: eco-fast doctor DIR",
            )


def temporary_files(_: Subject) -> Notes:
    """The folder of temporary files, where compilers work and DALI leaves its graphs."""
    wanted, why = os.environ.get("TMPDIR"), "compilers, torchrun and DALI work in it"
    try:
        taken = tempfile.gettempdir()
    except OSError as error:
        yield Finding(f"no folder of temporary files can be written ({error})", why, "export TMPDIR=DIR")
        return
    yield Fact("temporary files in", taken)
    if wanted and Path(wanted).absolute() != Path(taken).absolute():
        yield Finding(f"$TMPDIR is {wanted}, which cannot be written; {taken} is taken instead", why, "unset TMPDIR")
    if reason := why_not_written(Path(taken)):
        yield Finding(f"{taken} cannot be written ({reason})", why, "make room there, or export TMPDIR=DIR")


def caches(_: Subject) -> Notes:
    """Where compilers keep what they made."""
    home = Path(os.environ.get("HOME") or os.path.expanduser("~"))  # noqa: PTH111 - which raises nothing
    ours = Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache")
    places = (
        ("TORCHINDUCTOR_CACHE_DIR", None, "torch.compile fails"),
        ("TRITON_CACHE_DIR", home / ".triton", "no kernel of a GPU can be compiled"),
        ("XDG_CACHE_HOME", ours, "each process compiles eco-fast's own C++ anew"),
    )
    for name, usual, effect in places:
        folder = Path(os.environ[name]) if os.environ.get(name) else usual
        if folder is None:  # beside the temporary files
            continue
        yield Fact(f"${name}", str(folder))
        if why := why_not_written(_there(folder)):
            yield Finding(
                f"{folder}, where compiled code is kept, cannot be written ({why})",
                f"{effect} where what was compiled cannot be kept",
                f"export {name}=DIR (a folder that can be written)",
            )


def locks(subject: Subject) -> Notes:
    """Whether one process alone can hold a file."""
    why = "two trainings that are started in one folder by accident are told apart by a lock"
    for folder in subject.paths:
        with _trial(folder) as path:
            if path is None:
                continue
            with path.open("wb") as first, path.open("rb") as second:
                try:
                    fcntl.flock(first, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    fcntl.flock(second, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    yield Fact(f"flock in {folder}", "works")
                    continue
                except OSError as error:
                    known = error.errno in NO_FLOCK
                    yield Finding(
                        f"{folder} knows no flock ({error.strerror})",
                        why
                        + (
                            "; files take its place, whose holder on another machine is found dead after minutes"
                            if known
                            else "; none can be had, so none can start"
                        ),
                        "mount it with locks (Lustre: mount -o flock; NFS: start rpc.statd), or name another folder",
                    )
                    continue
            yield Finding(
                f"{folder} grants the same flock twice",
                why,
                "mount it with locks (NFS: without -o nolock), or name another folder",
            )


def fsync(subject: Subject) -> Notes:
    """Whether what is written can be made to reach the disk."""
    for folder in subject.paths:
        with _trial(folder) as path:
            if path is None:
                continue
            began = time.perf_counter()
            for target in (path, folder):
                file = os.open(target, os.O_RDONLY)
                try:
                    os.fsync(file)
                except OSError as error:
                    lost = "a renamed file" if error.errno in NO_FOLDER_SYNC and target == folder else "any file"
                    yield Finding(
                        f"{target if target == folder else f'a file in {folder}'} cannot be flushed to its disk "
                        f"({error.strerror})",
                        f"a power cut may take {lost} that a training counts on, a checkpoint too",
                        "look for errors of the disk (dmesg | tail), or name another folder",
                    )
                finally:
                    os.close(file)
            yield Fact(f"fsync in {folder}", 1e3 * (time.perf_counter() - began), "ms")


def shared_memory(_: Subject) -> Notes:
    """The memory by which the processes of several GPUs exchange what they must."""
    mend = "docker run --shm-size=8g, or mount -o remount,size=8g /dev/shm"
    why = "NCCL puts the buffers between the GPUs of a machine there: training on several fails, or ends with SIGBUS"
    if not SHARED_MEMORY.is_dir():
        yield Finding(f"{SHARED_MEMORY} is missing", why, f"mount -t tmpfs -o size=8g tmpfs {SHARED_MEMORY}")
        return
    size = shutil.disk_usage(SHARED_MEMORY).total
    yield Fact("size", size_in_words(size))
    if size < ENOUGH_SHARED:
        yield Finding(f"{SHARED_MEMORY} has {size_in_words(size)}, expected {size_in_words(ENOUGH_SHARED)}", why, mend)
    elif reason := why_not_written(SHARED_MEMORY):
        yield Finding(f"{SHARED_MEMORY} cannot be written ({reason})", why, mend)


def limits(_: Subject) -> Notes:
    """What one process may have."""
    for limit in LIMITS:
        soft = resource.getrlimit(limit.which)[0]
        unlimited = soft == resource.RLIM_INFINITY
        yield Fact(limit.name, "unlimited" if unlimited else str(soft))
        if not unlimited and soft < limit.enough:
            expected = "none" if limit.enough == float("inf") else f"{limit.enough:.0f} or more"
            yield Finding(f"the limit of {limit.name} is {soft}, expected {expected}", limit.why, limit.mend)
    try:
        maps = int(MOST_MAPS.read_text(encoding="ascii"))
    except OSError:  # not Linux's /proc
        return
    yield Fact("maps", str(maps))
    if maps < ENOUGH_MAPS:
        yield Finding(
            f"a process may map {maps} files and pieces of memory, expected {ENOUGH_MAPS} or more",
            "each pack of a store, each library and each thread takes some: the training ends with ENOMEM",
            f"sysctl -w vm.max_map_count={ENOUGH_MAPS}",
        )


def clock(subject: Subject) -> Notes:
    """Whether the time can be right, here and where files lie."""
    now = time.time()
    yield Fact("now", datetime.fromtimestamp(now, UTC).isoformat(timespec="seconds"))
    mend = "timedatectl set-ntp true, or chronyc makestep"
    if now < BEFORE_US.timestamp():
        yield Finding(
            f"the clock says {datetime.fromtimestamp(now, UTC):%Y-%m-%d}, before this program was written",
            "what changed is told by files' times: images that are replaced may be taken for the old ones",
            mend,
        )
    for folder in subject.paths:
        with _trial(folder) as path:
            if path is None:
                continue
            apart = path.stat().st_mtime - time.time()
        if abs(apart) > CLOCKS_APART:
            yield Finding(
                f"the clock of the disk of {folder} is {abs(apart):.0f} s {'ahead' if apart > 0 else 'behind'}",
                "what changed is told by files' times, and they come from there",
                f"{mend}, on the machine that serves the files too",
            )


def why_not_written(folder: Path) -> str | None:
    """The reason why no file can be written in a folder, or None; nothing is left there."""
    try:
        with tempfile.NamedTemporaryFile(dir=folder, prefix=".eco-fast-doctor-") as file:
            file.write(bytes(WRITTEN))
            file.flush()
    except OSError as error:
        return error.strerror or str(error)
    return None


@contextmanager
def _trial(folder: Path) -> Iterator[Path | None]:
    """A file in a folder, which ends with the block; None where none can be made, as `disk` says."""
    try:
        file = tempfile.NamedTemporaryFile(dir=folder, prefix=".eco-fast-doctor-")  # noqa: SIM115 - two ways out
    except OSError:
        yield None
        return
    with file:
        yield Path(file.name)


def _there(folder: Path) -> Path:
    """The folder, or the nearest above it that exists: where it would be made."""
    return next(one for one in (folder, *folder.absolute().parents) if one.exists())
