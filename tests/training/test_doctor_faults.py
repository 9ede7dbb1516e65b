"""`eco-fast doctor` names what is wrong with a machine: real faults, but for drivers that this machine has not."""

import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from eco_fast_kernels import ROUNDINGS, downsampling, registration

from eco_fast.models.cpu import build
from eco_fast.training.doctor import op_cases, op_inputs, ops, software
from eco_fast.training.doctor.examine import Group, checked
from eco_fast.training.doctor.findings import Check, Finding, Subject
from eco_fast.training.doctor.op_case import Bound
from eco_fast.utils import device
from eco_fast.utils.device import cpp_compiler

SHIM = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
static int is(const char *name, const char *value) {
    const char *set = getenv(name);
    return set && !strcmp(set, value);
}
extern "C" int flock(int file, int operation) {
    if (is("FLOCK", "hangs")) for (;;) pause();
    if (is("FLOCK", "always")) return 0;
    if (!is("FLOCK", "never")) return syscall(SYS_flock, file, operation);
    errno = ENOLCK;
    return -1;
}
extern "C" int fsync(int file) {
    if (is("FSYNC", "dies")) raise(SIGBUS);
    if (!is("FSYNC", "never")) return syscall(SYS_fsync, file);
    errno = EIO;
    return -1;
}
extern "C" int clock_gettime(clockid_t clock, struct timespec *now) {
    int failed = syscall(SYS_clock_gettime, clock, now);
    if (clock == CLOCK_REALTIME && getenv("AHEAD")) now->tv_sec += atol(getenv("AHEAD"));
    return failed;
}
"""
DRIVER = 'extern "C" int cuDriverGetVersion(int *version) { *version = 13000; return 0; }'
FULL = "mount -t tmpfs -o size=64k none"
INCLUDE = "$(python3 -c 'import sysconfig; print(sysconfig.get_path(\"include\"))')"
FUSED = Path(registration.__file__).with_name("fused")
CPU_CASES = [case.name for case in op_cases.CASES if "cpu" in case.devices and not case.compiles]
NOTHING: Mapping[str, str] = {}
OF_TESTS = ("TRITON_INTERPRET", "TORCHINDUCTOR_CACHE_DIR")
"""What conftest.py sets, and what torch does once its compiler is imported."""
THIRTY_YEARS_BACK = str(-30 * 365 * 86400)


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """Makes a shared library of C++."""
    folder = tmp_path_factory.mktemp("built")

    @functools.cache
    def build_it(name: str, source: str) -> Path:
        compiler = cpp_compiler()
        if compiler is None:
            pytest.skip("needs a C++ compiler")
        (folder / f"{name}.cpp").write_text(source, encoding="ascii")
        subprocess.run([compiler, "-shared", "-fPIC", "-o", name, f"{name}.cpp"], cwd=folder, check=True)
        return folder / name

    return build_it


@pytest.fixture(scope="session")
def mounting() -> Callable[[str], list[str]]:
    """Makes what goes before a command that is to see other mounts than the rest of the machine."""
    if subprocess.run(
        ["unshare", "-m", "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True, check=False
    ).returncode:
        pytest.skip("needs root, and leave to mount: `unshare -m`")
    return lambda mounts: ["unshare", "-m", "sh", "-ec", f'{mounts}\nexec "$@"', "sh"]


def findings_of(
    group: str,
    folder: Path,
    environment: Mapping[str, str] = NOTHING,
    before: Sequence[str] = (),
    only: str = "",
    on: str = "cpu",
) -> list[tuple[str, str]]:
    """Check and text of each finding of a group, in a process of its own; `only` one of its checks, for speed."""
    subject = json.dumps({"folders": [str(folder)], "device": on})
    command = [sys.executable, "-m", "eco_fast.training.doctor.group", group, subject]
    if only:
        look = f"from eco_fast.training.doctor import {group} as g, findings, group; g.checks = lambda _: [g.{only}]; "
        command = [sys.executable, "-c", f"{look} group.main()", group, subject]
    known = {name: value for name, value in os.environ.items() if name not in OF_TESTS}
    said = subprocess.check_output([*before, *command], env={**known, **environment}, text=True)
    check, found = group, []
    for line in said.splitlines():
        ((kind, value),) = json.loads(line).items()
        if kind == "check":
            check = value
        elif kind == "finding":
            assert all(value[part] for part in ("what", "why", "mend"))
            found.append((check, value["what"]))
    return found


def named(found: list[tuple[str, str]], check: str, text: str) -> None:
    """The check alone has found something, and says so."""
    assert {name for name, _ in found} == {check}, found
    assert any(text in what for _, what in found), found


def said_by(check: Check, folder: str = ".", on: str = "cpu") -> list[str]:
    """What a check finds in this process."""
    return [note.what for note in check(Subject((folder,), on)) if isinstance(note, Finding)]


def test_nothing_is_wrong_with_this_machine_itself(tmp_path: Path) -> None:
    assert findings_of("machine", tmp_path) == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("mounts", "environment", "check", "says"),
    [
        (f"{FULL} DIR", {}, "disk", "No space left on device"),
        (f"{FULL} DIR", {}, "disk", "only 65.5 kB are free"),
        ("mount -t tmpfs -o nr_inodes=1 none DIR", {}, "disk", "no inode left"),
        ("mount --bind DIR DIR; mount -o remount,ro,bind DIR", {}, "disk", "Read-only file system"),
        ("mount --bind DIR DIR; mount -o remount,ro,bind DIR", {"XDG_CACHE_HOME": "DIR/c"}, "caches", "DIR/c, where"),
        (f"{FULL} DIR", {"TORCHINDUCTOR_CACHE_DIR": "DIR"}, "caches", "No space left on device"),
        (f"{FULL} /dev/shm", {}, "shared_memory", "has 65.5 kB, expected 1.1 GB"),
        (f"{FULL} DIR", {"TMPDIR": "DIR"}, "temporary_files", "DIR cannot be written (No space left on device)"),
        (
            "echo 30000 > DIR/n; mount --bind DIR/n /proc/sys/vm/max_map_count",
            {},
            "limits",
            "a process may map 30000 files and pieces of memory, expected 65530",
        ),
    ],
    ids=["full", "little room", "no inodes", "read-only", "cache", "full cache", "shm", "full tmp", "maps"],
)
def test_what_is_mounted_wrong_is_named(
    mounts: str,
    environment: dict[str, str],
    check: str,
    says: str,
    tmp_path: Path,
    mounting: Callable[[str], list[str]],
) -> None:
    folder = tmp_path / "dir"
    folder.mkdir()
    subject = folder if check == "disk" else tmp_path
    environment = {name: value.replace("DIR", str(folder)) for name, value in environment.items()}
    found = findings_of("machine", subject, environment, mounting(mounts.replace("DIR", str(folder))))
    named(found, check, says.replace("DIR", str(folder)))


@pytest.mark.parametrize(
    ("environment", "check", "says"),
    [
        ({"FLOCK": "never"}, "locks", "knows no flock (No locks available)"),
        ({"FLOCK": "always"}, "locks", "grants the same flock twice"),
        ({"FSYNC": "never"}, "fsync", "cannot be flushed to its disk (Input/output error)"),
        ({"AHEAD": THIRTY_YEARS_BACK}, "clock", "before this program was written"),
        ({"AHEAD": "3600"}, "clock", "is 3600 s behind"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_what_a_disk_or_a_clock_does_wrong_is_named(
    environment: dict[str, str], check: str, says: str, tmp_path: Path, built: Callable[[str, str], Path]
) -> None:
    named(findings_of("machine", tmp_path, {"LD_PRELOAD": str(built("shim.so", SHIM)), **environment}), check, says)


@pytest.mark.parametrize(
    ("limit", "says"),
    [
        ("-n 1023", "the limit of open files is 1023, expected 1024 or more"),
        ("-v 4000000", "the limit of address space is 4096000000, expected none"),
        ("-f 1000000", "the limit of size of a file is"),
        ("-u 100", "the limit of processes and threads is 100"),
    ],
)
def test_a_limit_too_small_is_named(limit: str, says: str, tmp_path: Path) -> None:
    named(findings_of("machine", tmp_path, before=["bash", "-c", f'ulimit {limit}; exec "$@"', "bash"]), "limits", says)


def test_a_temporary_folder_that_is_not_taken_is_named(tmp_path: Path) -> None:
    named(
        findings_of("machine", tmp_path, {"TMPDIR": str(tmp_path / "no")}), "temporary_files", "which cannot be written"
    )


@pytest.mark.parametrize("how", ["hangs", "dies"])
def test_a_check_that_hangs_or_dies_is_named_and_its_process_ended(
    how: str, tmp_path: Path, built: Callable[[str, str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LD_PRELOAD", str(built("shim.so", SHIM)))
    monkeypatch.setenv({"hangs": "FLOCK", "dies": "FSYNC"}[how], how)
    answers = checked(Group("machine", "", 0), Subject((str(tmp_path),), "cpu"), 3 if how == "hangs" else 60)
    last = answers[-1]
    assert [one.check for one in answers if one.findings] == [last.check]
    if how == "hangs":
        assert (last.check, last.findings[0].what) == ("locks", "no answer within 3 s")
    else:
        assert (last.check, last.findings[0].what) == ("fsync", "the check ended by SIGBUS")
    assert answers[0].facts  # what was said before is kept


def test_a_check_that_raises_is_a_finding(tmp_path: Path) -> None:
    assert findings_of("machine", tmp_path / "gone")[0] == (
        "disk",
        f"it raised FileNotFoundError: [Errno 2] No such file or directory: '{tmp_path}/gone'",
    )


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert said_by(software.compilers) == ["no C++ compiler was found (g++, clang++ or $CXX)"]


@pytest.mark.parametrize(
    ("mounts", "says"),
    [
        (f"mount -t tmpfs none {INCLUDE}", "Python.h"),
        ("mount -t tmpfs -o noexec none DIR", "cannot be used"),
    ],
    ids=["no headers", "noexec"],
)
def test_a_compiler_that_does_not_get_what_it_needs(
    mounts: str, says: str, tmp_path: Path, mounting: Callable[[str], list[str]]
) -> None:
    before = mounting(mounts.replace("DIR", str(tmp_path)))
    named(findings_of("software", tmp_path, {"TMPDIR": str(tmp_path)}, before, "compilers"), "compilers", says)


def shadow(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    """A package that is found before the real one: a module of this text, or the metadata of NAME-VERSION."""
    path = folder / (f"{name}.dist-info/METADATA" if "-" in name else f"{name}/__init__.py")
    path.parent.mkdir(parents=True)
    path.write_text(text, encoding="ascii")
    monkeypatch.syspath_prepend(folder)
    for module in [one for one in sys.modules if one.partition(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)


def test_a_broken_torchvision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    if find_spec("spandrel") is None:
        pytest.skip("needs spandrel")
    shadow(tmp_path, monkeypatch, "torchvision", "raise ImportError('libjpeg.so.62: cannot open shared object file')")
    (said,) = said_by(software.teachers)
    assert "torchvision, which it needs, cannot be imported (ImportError: libjpeg.so.62" in said


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("torch-2.11.0", "Name: torch\nVersion: 2.11.0\n", "torch 2.11.0, expected <2.14,>=2.13"),
        ("simplejpeg", "raise ImportError('undefined symbol: tj3Init')", "simplejpeg cannot be imported (ImportError"),
        ("pillow-11.0", "Name: pillow\nVersion: 11.0\n", "pillow 11.0, expected >=11.1"),
    ],
    ids=["another torch", "a broken library", "an old Pillow"],
)
def test_a_package_that_is_not_the_tested_one(
    name: str, text: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    shadow(tmp_path, monkeypatch, name, text)
    (said,) = said_by(software.packages)
    assert says in said


def test_two_dalis(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for cuda in ("130", "120"):
        text = f"Name: nvidia-dali-cuda{cuda}\nVersion: 2.4.0\n"
        shadow(tmp_path / cuda, monkeypatch, f"nvidia_dali_cuda{cuda}-2.4.0", text)
    assert said_by(software.dali) == ["nvidia-dali-cuda130 and nvidia-dali-cuda120 are both installed"]


def test_a_dali_for_another_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    built_for = pytest.importorskip("nvidia.dali").__cuda_version__ // 1000
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(device, "cuda_of_driver", lambda: 1000 * (built_for - 1))
    assert said_by(software.dali, on="auto") == [
        f"the GPU's driver is for CUDA {built_for - 1}, this DALI for CUDA {built_for}"
    ]


def test_a_driver_too_old_for_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device, "cuda_of_driver", lambda: 12020)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    assert said_by(software.gpu, on="auto") == ["the GPU's driver is for CUDA 12.2, this torch for CUDA 13.0"]


def test_a_torch_without_cuda_beside_a_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, built: Callable[[str, str], Path]
) -> None:
    if torch.version.cuda:
        pytest.skip("this torch has CUDA")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    library = built("libcuda.so.1", DRIVER)
    environment = {"LD_LIBRARY_PATH": str(library.parent)}
    says = "there is a GPU's driver, but this torch is built for CPUs alone"
    named(findings_of("software", tmp_path, environment, only="gpu", on="auto"), "gpu", says)


@pytest.mark.parametrize("name", ["TRITON_INTERPRET", "TORCH_COMPILE_DISABLE", "CUDA_LAUNCH_BLOCKING"])
def test_settings_that_were_left_behind(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert said_by(software.settings) == []
    monkeypatch.setenv(name, "1")
    assert said_by(software.settings) == [f"{name}=1 is set"]


def test_more_threads_than_cores() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(512)
        (said,) = said_by(software.threads)
    finally:
        torch.set_num_threads(before)
    assert said.startswith("torch starts 512 threads on ")


CONSTANT, WRONG_CONSTANT = "row[inputs] = 1.0f;", "row[inputs] = 1.001f;"
KERNELS = [case for case in op_cases.CASES if "cpu" not in case.devices]
OPS = (registration._cut_crops, registration._downsample, registration._downsample_blend, registration._blended_loss)


@pytest.fixture
def in_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tensors of the CPU take the way of a GPU's, through Triton's interpreter."""
    if torch.cuda.is_available():
        pytest.skip("a GPU runs the kernels themselves")
    for op in OPS:
        monkeypatch.setitem(op._backend_fns, "cpu", op._backend_fns["cuda"])
    monkeypatch.setattr(torch.Tensor, "is_cuda", property(lambda _: True))  # what the others choose by
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (8, 0))
    monkeypatch.setattr(ops, "FEW", 1)
    for module in (op_cases, op_inputs):
        monkeypatch.setattr(module, "LR_SIDE", 6)
    monkeypatch.setattr(op_inputs, "FEATURES", 12)
    monkeypatch.setattr(op_inputs, "HEADS", 1)
    monkeypatch.setattr(op_inputs, "SHAPES", ((16, 3, 3, 3), (16,)))


def test_every_kernel_has_a_row() -> None:
    """A new op is a new row of the table."""
    launched = re.compile(r"^def launch|^class LambPlan|triton_op\(", re.MULTILINE)
    modules = [path for path in FUSED.glob("*.py") if launched.search(path.read_text(encoding="utf-8"))]
    assert {path.stem.removesuffix("_backward") for path in modules} == {case.name for case in KERNELS} - {"downsample"}


@pytest.mark.slow
@pytest.mark.usefixtures("in_the_interpreter")
@pytest.mark.parametrize("name", [case.name for case in KERNELS])
def test_sound_kernels_are_found_sound(name: str) -> None:
    assert wrong(name) == []


@pytest.mark.usefixtures("in_the_interpreter")
def test_a_kernel_with_a_wrong_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    from eco_fast_kernels.fused import blended_loss

    monkeypatch.setattr(blended_loss, "CHARBONNIER_EPSILON", 1.255)
    assert wrong("blended_loss") == ["blended_loss is wrong on cpu: error "]


def test_swapped_roundings(monkeypatch: pytest.MonkeyPatch) -> None:
    right, other = downsampling.downsample, dict(zip(ROUNDINGS, ROUNDINGS[::-1], strict=True))
    assert [name for name in CPU_CASES if wrong(name)] == []
    monkeypatch.setattr(
        downsampling, "downsample", lambda crops, scale, by, *more: right(crops, scale, other[by], *more)
    )
    assert [name for name in CPU_CASES if wrong(name)] == [name for name in CPU_CASES if name.startswith("imresize")]


def test_an_op_that_gives_other_bits_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU whose memory fails: within what rounding may change, but not the same."""
    (case,) = [one for one in op_cases.CASES if one.name == "lamb_step by torch"]

    def flaky(*tensors: torch.Tensor) -> Bound:
        run = case.op(*tensors)
        return lambda: [one * (1 + 1e-6 * torch.rand(())) for one in run()]

    monkeypatch.setattr(op_cases, "CASES", [replace(case, op=flaky)])
    assert wrong(case.name) == ["lamb_step by torch gives other bits when it is run again on cpu"]


def test_an_op_that_gives_nan_beside_what_is_right(monkeypatch: pytest.MonkeyPatch) -> None:
    (case,) = [one for one in op_cases.CASES if one.name == "lamb_step by torch"]

    def broken(*tensors: torch.Tensor) -> Bound:
        run = case.op(*tensors)
        return lambda: [*run()[:-1], torch.full_like(tensors[-1], float("nan"))]

    monkeypatch.setattr(op_cases, "CASES", [replace(case, op=broken)])
    assert wrong(case.name) == ["lamb_step by torch is wrong on cpu: error "]


@pytest.mark.slow
def test_cpp_with_a_wrong_constant(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real one is compiled as it is on the user's machine, and so is the wrong one."""
    source = Path(build.__file__).with_name("linear.cpp").read_text(encoding="utf-8")
    assert source.count(CONSTANT) == 1
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for text, expected in (
        (source, []),
        (source.replace(CONSTANT, WRONG_CONSTANT), ["linear in C++ is wrong on cpu: error "]),
    ):
        (tmp_path / "linear.cpp").write_text(text, encoding="utf-8")
        monkeypatch.setattr(build, "__file__", str(tmp_path / "build.py"))
        build.library.cache_clear()
        assert wrong("linear in C++") == expected
    build.library.cache_clear()


@pytest.mark.slow
def test_cpp_that_cannot_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    build.library.cache_clear()
    build.SAID.clear()
    (case,) = [one for one in op_cases.CASES if one.name == "linear in C++"]
    (found,) = [note for note in ops._examine(case, "cpu", Subject((".",), "cpu")) if isinstance(note, Finding)]
    assert found.why == "each process compiles eco-fast's own C++ anew, for a second, as it cannot be kept"
    assert "a file is in the way" in found.what
    build.library.cache_clear()


@pytest.mark.slow
def test_two_processes_that_cannot_reach_each_other(tmp_path: Path) -> None:
    named(
        findings_of("pair", tmp_path, {"GLOO_SOCKET_IFNAME": "none0"}), "torchrun", "Unable to find address for: none0"
    )


def wrong(name: str) -> list[str]:
    """What is wrong with the results of an op on the CPU, without the size of the error."""
    (case,) = [one for one in op_cases.CASES if one.name == name]
    return [re.sub("error .*", "error ", note.what) for note in ops._compare(case, "cpu") if isinstance(note, Finding)]
