"""Writing so that a reader never sees half a file: write beside, flush to the disk, rename."""

import errno
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

CHUNK_BYTES = 1 << 20
NO_FOLDER_SYNC = (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EROFS)


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Call `write` with a file beside `path`, then put it in place of `path` in one step."""
    make_folder(path.parent)
    # Hidden, and with the process in its name: two processes never write into the same file. A checksum fits where the
    # name with more around it may not.
    beside = path.with_name(f".{zlib.crc32(os.fsencode(path.name)):08x}.{os.getpid()}.partial")
    try:
        with name_file_in_errors(path):
            with beside.open("wb") as file:
                write(file)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    sync_folder(path.parent)


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Let an error of writing name its file, for what the system raises on a full disk does not.

    Raises:
        OSError: the same one, with the name.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        cause = error if isinstance(error, OSError) else error.__context__  # torch.save hides the disk's error
        if not isinstance(cause, OSError):
            raise
        reason = cause.strerror or f"not written in full ({cause}), is the disk full?"
        raise OSError(cause.errno, reason, str(path)) from error


@contextmanager
def name_damaged(path: Path) -> Iterator[None]:
    """Let what a damaged file makes fail in a block that reads it name the file.

    Raises:
        ValueError: it is not as it was written.
    """
    try:
        yield
    except (ValueError, TypeError, AttributeError, LookupError, OverflowError, RecursionError) as error:
        raise ValueError(f"{path}: damaged; restore it, or move it away") from error


def unused(path: Path) -> Path:
    """The path, or the first with a number before its name, where nothing lies yet."""
    numbered = (path.with_name(f"{number}.{path.name}") for number in itertools.count(1))
    return next(one for one in itertools.chain([path], numbered) if not one.exists())


def make_folder(folder: Path) -> None:
    """Make a folder with its parents, so that they survive a power cut.

    Raises:
        ValueError: a file is in the way.
    """
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"{folder}: expected a folder or room for one, but a file is in the way") from error
    for one in made:
        if os.access(one.parent, os.R_OK):  # some folders that all may write in cannot be opened
            sync_folder(one.parent)


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside the one that is wanted, to be filled in the block, and then put in its place in one step.

    Where the block fails nothing is left; its errors speak of the folder that was wanted.

    Raises:
        ValueError: something lies there already.
    """
    if os.path.lexists(folder):
        raise ValueError(f"{folder}: exists already; choose another folder, or move it away")
    make_folder(folder.parent)
    beside = folder.with_name(f".{zlib.crc32(os.fsencode(folder.name)):08x}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)  # of a process that had this one's number, as those of a container do
    try:
        with name_file_in_errors(folder):
            beside.mkdir()
        yield beside
        with name_file_in_errors(folder):
            beside.rename(folder)
    except OSError as error:
        if error.filename:
            error.filename = str(error.filename).replace(str(beside), str(folder))
        raise
    except ValueError as error:
        raise ValueError(str(error).replace(str(beside), str(folder))) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    sync_folder(folder.parent)


def write_bytes(path: Path, content: bytes) -> None:
    """Atomically replace a file."""
    write_atomically(path, lambda file: file.write(content))


def write_text(path: Path, text: str) -> None:
    """Atomically replace a text file."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Atomically replace a JSON file."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames in `folder` survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with name_file_in_errors(folder):
            os.fsync(descriptor)
    except OSError as error:
        if error.errno not in NO_FOLDER_SYNC:  # CIFS and some of FUSE cannot; the files themselves are on the disk
            raise
    finally:
        os.close(descriptor)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def file_stamp(path: Path) -> str:
    """Size in bytes and modification time in nanoseconds: what tells, without reading a file, that it is unchanged."""
    status = path.stat()
    return f"{status.st_size} {status.st_mtime_ns}"


def require_space(folder: Path, needed: int, purpose: str) -> None:
    """Refuse to write so many bytes to `folder` if they cannot fit; say so of much, a hundredth of what is free.

    Raises:
        ValueError: too little space, or a file is in the folder's place.
    """
    make_folder(folder)
    free = shutil.disk_usage(folder).free
    if needed > free / 100:
        print(f"{purpose}: {size_in_words(needed)} needed, {size_in_words(free)} free in {folder}", flush=True)
    if needed > free:
        raise ValueError(
            f"{folder}: {purpose} needs {size_in_words(needed)}, but only {size_in_words(free)} are free; "
            "make room or choose another folder"
        )


def size_in_words(count: int) -> str:
    """Bytes for people: 1.5 GB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
