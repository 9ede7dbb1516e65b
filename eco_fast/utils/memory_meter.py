"""How much memory a process takes, and how much more it may take before something stops it.

What stops it on a CPU: the address space that `ulimit -v` allows, the memory of its control group, that of the
computer. Beyond the first an allocation fails; beyond the others the kernel kills a process without a word.
"""

import ctypes
import os
import platform
import resource
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch

RESIDENT, ADDRESSES, ON_GPU = "resident", "addresses", "on the GPU"
NOW = {RESIDENT: "VmRSS", ADDRESSES: "VmSize"}
PEAK = {RESIDENT: "VmHWM", ADDRESSES: "VmPeak"}
CONTROL_GROUPS = Path("/sys/fs/cgroup")
UNLIMITED = 1 << 60  # what version 1 of control groups says where there is no limit is above it


class Room(NamedTuple):
    """Memory that a process may take."""

    kind: str
    """What is counted: a key of `NOW`, or `ON_GPU`."""
    bytes: int
    of: str
    """Whose memory it is; the end of a sentence."""


class MemoryMeter:
    """What this process takes beyond what it had when the meter was made, and what it may take beyond that.

    Args:
        device: whose memory: "cpu", or a GPU.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        if device == "cpu" and platform.libc_ver()[0] == "glibc":
            ctypes.CDLL(None).malloc_trim(0)  # what earlier work has freed is no part of the base
        self._base = self._now()
        if device != "cpu":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # forget the resident peak
        self._earlier = _status()

    def taken(self) -> dict[str, int]:
        """The most bytes since, by kind; 0 where that is not more than the system's mark from before."""
        if self.device != "cpu":
            return {ON_GPU: torch.cuda.max_memory_allocated(self.device) - self._base[ON_GPU]}
        status = _status()
        higher = {kind: status[name] > self._earlier[name] for kind, name in PEAK.items()}
        return {kind: status[name] - self._base[kind] if higher[kind] else 0 for kind, name in PEAK.items()}

    def rooms(self) -> list[Room]:
        """What each limit leaves. Ranks of one machine get equal parts of what they share."""
        if self.device != "cpu":
            free, _ = torch.cuda.mem_get_info(self.device)
            free += torch.cuda.memory_reserved(self.device)
            return [Room(ON_GPU, free - self._base[ON_GPU], "that the GPU has free")]
        ranks, now = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), self._now()
        own = {kind: now[kind] - base for kind, base in self._base.items()}
        shared = [Room(RESIDENT, left // ranks, of) for left, of in (*control_groups(), *computer())]
        return [Room(one.kind, one.bytes + own[one.kind], one.of) for one in (*addresses(), *shared)]

    def _now(self) -> dict[str, int]:
        if self.device != "cpu":
            return {ON_GPU: torch.cuda.memory_allocated(self.device)}
        status = _status()
        return {kind: status[name] for kind, name in NOW.items()}


def addresses() -> Iterator[Room]:
    """What `ulimit -v` leaves, where it is set."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit != resource.RLIM_INFINITY:
        yield Room(ADDRESSES, limit - _status()["VmSize"], "that `ulimit -v` leaves")


def control_groups(root: Path = CONTROL_GROUPS, own: Path = Path("/proc/self/cgroup")) -> Iterator[tuple[int, str]]:
    """What each control group of this process leaves, of either version; pages of files that can go count as free."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for _, controllers, group in (line.split(":", 2) for line in lines):
        if controllers == "":
            top, names = root, ("memory.max", "memory.current", "inactive_file")
        elif controllers == "memory":
            top, names = root / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inner = top / group.lstrip("/")
        for folder in dict.fromkeys([inner, *inner.parents, top]):  # in a container the group's path may lie outside
            if folder.is_relative_to(top) and (left := _left_by(folder, *names)) is not None:
                yield left, f"that the control group's {names[0]} leaves"


def _left_by(folder: Path, limit: str, usage: str, reclaimable: str) -> int | None:
    try:
        text = (folder / limit).read_text(encoding="ascii").strip()
        if text == "max" or int(text) >= UNLIMITED:
            return None
        used = int((folder / usage).read_text(encoding="ascii"))
        pages = dict(line.split() for line in (folder / "memory.stat").read_text(encoding="ascii").splitlines())
        return int(text) - used + int(pages[reclaimable])
    except OSError:
        return None


def computer() -> Iterator[tuple[int, str]]:
    """What the computer has available."""
    with suppress(OSError):
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024, "that the computer has available"


def _status() -> dict[str, int]:
    """The lines of /proc/self/status that are sizes, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines if line.endswith(" kB")}
