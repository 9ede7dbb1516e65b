"""One writer at a time: lock files that say who holds them, and end with their process, however that ends.

Where the file system knows flock, it decides; on a network disk it often holds across machines. Where there is none
(Lustre without -o flock), files that one process alone can create decide, and whether the process that made one is
alive: by its number and start time on the same machine. About a process on another machine, also where flock was
granted (it may be local to each machine), the file's modification time tells: its holder renews it all the time.
"""

import errno
import fcntl
import hashlib
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from eco_fast.utils.files import make_folder

NO_FLOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL)
BEAT = 10.0  # seconds between two signs of life
SILENCE = 120.0  # seconds without one after which a process on another machine is taken for dead
POLL = 0.2  # seconds between two looks at what is waited for
LOOKS = 50  # at a lock whose holder has not yet written who it is


class TakenError(ValueError):
    """Another process holds the lock; says which."""


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock."""

    host: str
    kernel: str
    """The running kernel's and the process numbers' own name: equal means that `pid` is one of ours."""
    pid: int
    started: str
    """The kernel's time of the process's start, which no later process of the same number shares."""
    since: str
    """When it took the lock, for people."""

    @classmethod
    def me(cls) -> "Holder":
        """This process, now."""
        now = datetime.now(UTC).isoformat(timespec="microseconds")
        return cls(socket.gethostname(), _kernel(), os.getpid(), _start_of(os.getpid()), now)

    @property
    def here(self) -> bool:
        """Whether its number means something to this process."""
        return self.kernel == _kernel()

    @property
    def alive(self) -> bool:
        """Whether a process that is `here` still runs."""
        return bool(self.started) and _start_of(self.pid) == self.started

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since[:19]}Z"


class Lock:
    """A lock that is held."""

    def __init__(self, path: Path, mine: Holder) -> None:
        self.path, self.mine = path, mine
        self._stop = threading.Event()
        self._beats = threading.Thread(target=self._live, name="lock", daemon=True)
        self._beats.start()

    def check(self) -> None:
        """Make sure that nobody took this process for dead, as one that was suspended for long is on another machine.

        Raises:
            TakenError: another process has gone on in its place.
        """
        now = _read(self.path)
        if now is not None and now != self.mine:
            raise TakenError(f"{self.path.parent}: taken over by {now}, to which this process seemed dead")

    def end(self) -> None:
        """Let others have it."""
        self._stop.set()
        self._beats.join()
        with suppress(OSError):  # a disk that has gone read-only: the process ends all the same
            if _read(self.path) == self.mine:
                self._leave()

    def _leave(self) -> None:
        """Other processes may have this file open to lock it: emptied, it is still the one that they all lock."""
        os.truncate(self.path, 0)

    def _live(self) -> None:
        while not self._stop.wait(BEAT):
            with suppress(OSError):  # a disk that is away for a moment
                os.utime(self.path)


class Claim(Lock):
    """A lock by a file that one process alone could create."""

    def _leave(self) -> None:
        self.path.unlink()


@contextmanager
def file_lock(path: Path, *, wait: bool = False) -> Iterator[Lock | None]:
    """Hold a lock file; None in a folder that cannot be written, where nothing is to be locked.

    Args:
        path: the lock file.
        wait: until no other process holds it.

    Raises:
        TakenError: another process holds it; names that process.
    """
    try:
        make_folder(path.parent)
        file = _open(path)
    except OSError:
        if not path.parent.is_dir() or os.access(path.parent, os.W_OK):
            raise
        yield None
        return
    OPEN.add(file)
    try:
        lock = _waiting(path, file) if wait else _taken(path, file)
        try:
            yield lock
        finally:
            lock.end()
    finally:
        OPEN.discard(file)
        os.close(file)


def holder_of(path: Path) -> Holder | None:
    """Who holds a lock file, as far as that can be read: nothing is written."""
    holder = _read(path)
    if holder is None or (holder.here and not holder.alive):
        return None
    return holder if holder.here or time.time() - path.stat().st_mtime < SILENCE else None


def _close_in_child() -> None:
    """A forked process shares its parent's locks, and would keep them when the parent dies."""
    for file in OPEN:
        os.close(file)
    OPEN.clear()


OPEN: set[int] = set()
os.register_at_fork(after_in_child=_close_in_child)


def _waiting(path: Path, file: int) -> Lock:
    said = False
    while True:
        try:
            return _taken(path, file)
        except TakenError as error:
            if not said:
                print(f"waiting: {error}", flush=True)
            said = True
            time.sleep(POLL)


def _taken(path: Path, file: int) -> Lock:
    """The lock, by whichever means there is."""
    mine = Holder.me()
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _refusal(path) from error
    except OSError as error:
        if error.errno not in NO_FLOCK:
            raise
        return Claim(_claimed(path.with_name(f"{path.name}.held"), mine), mine)
    before = _read(path)
    if before is not None and not before.here and _lives(path):
        fcntl.flock(file, fcntl.LOCK_UN)
        raise _refusal(path)
    os.ftruncate(file, 0)
    os.pwrite(file, _note(mine), 0)
    return Lock(path, mine)


def _claimed(claim: Path, mine: Holder) -> Path:
    """The file that makes this process the holder: the first one, or the one named after a dead holder of the last.

    One process alone can create each, so one alone succeeds the dead. A dead process's file stays: another that has
    just read it may be about to succeed it.
    """
    while True:
        try:
            file = os.open(claim, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
        except FileExistsError:
            if _lives(claim):
                raise _refusal(claim) from None
            dead = _read(claim)
            end = "unknown" if dead is None else hashlib.sha256(_note(dead)).hexdigest()[:8]
            claim = claim.with_name(f"{claim.name}.{end}")
        else:
            with os.fdopen(file, "wb") as made:
                made.write(_note(mine))
            return claim


def _refusal(path: Path) -> TakenError:
    looks = 0
    while (holder := _read(path)) is None and looks < LOOKS:
        time.sleep(POLL)  # it is about to write who it is
        looks += 1
    return TakenError(f"{path.parent}: in use by {holder or 'another process'}; wait for its end, or stop it")


def _lives(path: Path) -> bool:
    """Whether the file's holder is alive: by its number here, or by signs of life. All times are the file server's."""
    until: float | None = None
    seen = 0
    if _read(path) is None:
        time.sleep(POLL)  # it is about to write who it is
    while True:
        holder = _read(path)
        if holder is not None and holder.here:
            return holder.alive
        try:
            beat = path.stat().st_mtime_ns
        except FileNotFoundError:
            return False
        if until is None:
            seen, until = beat, time.monotonic() + SILENCE - (_now_there(path) - beat) / 1e9
            if time.monotonic() < until:
                print(f"{path.parent}: waiting for a sign of life of {holder or 'another process'}", flush=True)
        elif beat != seen:
            return bool(path.stat().st_size)  # emptied: it has ended
        if time.monotonic() >= until:
            return False
        time.sleep(POLL)


def _now_there(path: Path) -> int:
    """The time of the file system, in nanoseconds."""
    beside = path.with_name(f"{path.name}.{socket.gethostname()}.{os.getpid()}.clock")
    try:
        beside.write_bytes(b"")
        return beside.stat().st_mtime_ns
    finally:
        beside.unlink(missing_ok=True)


def _open(path: Path) -> int:
    """A lock file, for whoever may write in its folder."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(path, os.O_RDWR)


def _note(holder: Holder) -> bytes:
    return json.dumps(asdict(holder)).encode() + b"\n"


def _read(path: Path) -> Holder | None:
    """Who holds it, as far as the file tells."""
    with suppress(OSError, ValueError, TypeError):
        return Holder(**json.loads(path.read_bytes()))
    return None


def _kernel() -> str:
    """What tells this machine, since its last start, and this container's process numbers from all others."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"  # noqa: PTH115 - no path but a name
    return platform.node()


def _start_of(pid: int) -> str:
    """When a process started, in the kernel's ticks; "" where it is dead, or a zombie."""
    with suppress(OSError):
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        return "" if fields[0] in ("Z", "X") else fields[19]
    return ""
