"""The software: versions against those that were tested, compilers, drivers, and settings that were left behind."""

import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

from eco_fast.training.doctor.findings import Check, Fact, Finding, Notes, Subject

US = "eco-fast"
MODULES = {"pillow": "PIL", "scikit-image": "skimage", "tomli-w": "tomli_w"}
"""Names under which packages are imported, where they differ."""
DALIS = ("nvidia-dali-cuda130", "nvidia-dali-cuda120")
OPTIONAL = (*DALIS, "spandrel")
TORCHVISION = 15  # torch 2.N goes with torchvision 0.(N + 15)
DRIVERS = {12: "r525", 13: "r580"}
"""The oldest driver of a CUDA version."""
KERNEL_DRIVER = Path("/proc/driver/nvidia/version")
OFF = ("", "0", "false", "False", "no", "off")
SETTINGS = {
    "TORCH_COMPILE_DISABLE": "nothing is compiled: the steps are slower, and nothing says so",
    "TORCHDYNAMO_DISABLE": "nothing is compiled: the steps are slower, and nothing says so",
    "TRITON_INTERPRET": "the kernels run as Python, a thousand times slower, or fail on a GPU's memory",
    "CUDA_LAUNCH_BLOCKING": "the host waits for each kernel of the GPU, which then waits for the host",
    "PYTORCH_NO_CUDA_MEMORY_CACHING": "each tensor asks the driver for memory, which stops the GPU",
    "NVIDIA_TF32_OVERRIDE": "it overrides train.precision",
}
"""Variables for looking for errors, and what they do to a training that goes on with them."""


def checks(_: Subject) -> list[Check]:
    """What is looked at."""
    return [python, packages, teachers, compilers, dali, gpu, threads, settings]


def python(_: Subject) -> Notes:
    """The interpreter."""
    here = platform.python_version()
    yield Fact("version", here)
    try:
        said = importlib.metadata.metadata(US).get_all("Classifier") or []
    except importlib.metadata.PackageNotFoundError:
        return  # as `packages` says
    tested = re.findall(r"^Programming Language :: Python :: (3\.\d+)$", "\n".join(said), re.MULTILINE)
    if here.rpartition(".")[0] not in tested:
        yield Finding(
            f"Python {here}, expected one of {', '.join(tested)}",
            "the tests have run on those alone",
            f"python{tested[-1]} -m venv venv && venv/bin/pip install {US}",
        )


def packages(_: Subject) -> Notes:
    """What eco-fast needs: there, of a version that it was tested with, and whole."""
    try:
        wanted = [Requirement(one) for one in importlib.metadata.requires(US) or []]
    except importlib.metadata.PackageNotFoundError:
        yield Finding(
            f"{US} is not installed, it runs from a folder",
            "nothing says which versions it needs, so none can be compared",
            "pip install -e . (in that folder)",
        )
        return
    for package in wanted:
        if package.marker is None or package.marker.evaluate({"extra": ""}):
            yield from _package(package)
    for package in {one.name: one for one in wanted if one.name in OPTIONAL}.values():
        if version := _version(package.name):
            yield Fact(package.name, version)
            yield from _outside(package, version)


def _package(package: Requirement) -> Notes:
    version = _version(package.name)
    mend = f"pip install --force-reinstall '{package.name}{package.specifier}'"
    if version is None:
        yield Finding(f"{package.name} is not installed", "eco-fast imports it", mend)
        return
    yield Fact(package.name, version)
    yield from _outside(package, version)
    module = MODULES.get(package.name, package.name)
    if why := _why_not_imported(module):
        yield Finding(f"{module} cannot be imported ({why})", "eco-fast imports it", mend)


def _outside(package: Requirement, version: str) -> Iterator[Finding]:
    if not package.specifier.contains(version, prereleases=True):
        yield Finding(
            f"{package.name} {version}, expected {package.specifier}",
            "the tests have run on those versions; others change results, speed or interfaces",
            f"pip install '{package.name}{package.specifier}'",
        )


def teachers(_: Subject) -> Notes:
    """Spandrel and torchvision, which it imports: networks of other people."""
    if find_spec("spandrel") is None:
        yield Fact("spandrel", "not installed: EDSR, RCAN, SwinIR and RRDB alone can be teachers")
        return
    yield Fact("torchvision", _version("torchvision") or "none")
    try:
        import_module("eco_fast.models.spandrel_net").spandrel()
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything
        minor = int((_version("torch") or "2.0").split(".")[1])
        yield Finding(
            f"spandrel, or torchvision, which it needs, cannot be imported ({_first_line(error)})",
            "a teacher of an architecture that is not eco-fast's own is read by it",
            f"pip install --force-reinstall --no-deps spandrel 'torchvision==0.{minor + TORCHVISION}.*'",
        )


def compilers(subject: Subject) -> Notes:
    """What torch.compile, Triton and eco-fast's own C++ are built with."""
    from eco_fast.utils.device import c_compiler, cpp_compiler, why_not_build, why_not_compile  # noqa: PLC0415 - torch

    found = cpp_compiler()
    yield Fact("C++", found or "none")
    why = why_not_compile("cpu")
    if _on_gpu(subject):
        c = c_compiler()
        yield Fact("C", c or "none")
        why = why_not_build(c) if c else "no C compiler was found (gcc, clang or $CC)"
    if why is None:
        return
    headers = f"apt install python{platform.python_version().rpartition('.')[0]}-dev"
    mend = "apt install g++" if "no C" in why else headers if "Python.h" in why else "apt install --reinstall g++"
    if "cannot be used" in why:
        mend = "export TMPDIR=DIR (a folder that can be written, not mounted noexec)"
    effect = "nothing can run on a GPU" if _on_gpu(subject) else "on a CPU nothing is compiled, so the steps are slower"
    yield Finding(why, f"Triton and torch.compile generate code and build it: without that {effect}", mend)


def dali(subject: Subject) -> Notes:
    """The loader of image files."""
    from eco_fast.utils.device import why_not_dali  # noqa: PLC0415 - torch

    there = [name for name in DALIS if _version(name)]
    if len(there) > 1:
        yield Finding(
            f"{' and '.join(there)} are both installed",
            "they share their files: what is imported is a mixture of both",
            f"pip uninstall -y {' '.join(there)} && pip install 'eco-fast[dali]'",
        )
        return
    why = why_not_dali("cuda" if _on_gpu(subject) else "cpu")
    if why is None or "is not installed" in why:
        yield Fact("DALI", there[0] if there and why is None else "not installed: data.loader=plain takes its place")
        return
    reason, _, mend = why.partition("; ")
    yield Finding(
        reason.removeprefix("and "),
        "on a CPU it decodes and cuts ahead of the training, and data.source=files needs it",
        mend or "pip install --force-reinstall 'eco-fast[dali]'",
    )


def gpu(subject: Subject) -> Notes:
    """The driver, torch's CUDA, and whether the GPU is one that torch was built for."""
    import torch  # noqa: PLC0415 - what is looked at may be broken

    from eco_fast.utils.device import cuda_of_driver  # noqa: PLC0415 - likewise

    driver, built = cuda_of_driver(), torch.version.cuda
    yield Fact("CUDA of the driver", f"{driver // 1000}.{driver % 1000 // 10}" if driver else "no driver")
    yield Fact("CUDA of torch", built or "none")
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden == "" or subject.device == "cpu":
        yield Fact("GPUs", "not looked at, as asked for")
        return
    why = "the GPU cannot be used, so everything runs on the CPU"
    if not driver:
        if KERNEL_DRIVER.exists():
            yield Finding("the kernel has a GPU's driver, but libcuda.so.1 is not found", why, "docker run --gpus all")
        return
    if built is None:
        yield Finding(
            "there is a GPU's driver, but this torch is built for CPUs alone",
            why,
            f"pip install --force-reinstall torch=={torch.__version__.partition('+')[0]}",
        )
        return
    wanted = int(built.partition(".")[0])
    if driver // 1000 < wanted:
        yield Finding(
            f"the GPU's driver is for CUDA {driver // 1000}.{driver % 1000 // 10}, this torch for CUDA {built}",
            why,
            f"update the driver ({DRIVERS.get(wanted, 'its newest')} or newer), or install torch's build for "
            f"CUDA {driver // 1000}",
        )
        return
    yield from _gpus(hidden, why)


def _gpus(visible: str | None, why: str) -> Notes:
    import torch  # noqa: PLC0415 - as above

    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        shown = "" if visible is None else f" with CUDA_VISIBLE_DEVICES={visible}"
        mend = "nvidia-smi" if visible is None else "unset CUDA_VISIBLE_DEVICES"
        yield Finding(f"no GPU answers{shown} ({_first_line(error)})", why, mend)
        return
    built_for = torch.cuda.get_arch_list()
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        capability = f"{properties.major}{properties.minor}"
        free, total = torch.cuda.mem_get_info(index)
        yield Fact(f"GPU {index}", f"{properties.name}, sm_{capability}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free")
        majors = {one.partition("_")[2].rstrip("af")[:-1] for one in built_for}
        if str(properties.major) not in majors:
            yield Finding(
                f"GPU {index} is sm_{capability}, this torch is built for {', '.join(built_for)}",
                "there is no code for it: the first kernel ends with 'no kernel image is available'",
                "install a build of torch for an older CUDA (nvidia-smi names the newest that the driver takes)",
            )
        if free < total / 2:
            yield Finding(
                f"other programs hold {(total - free) / 1e9:.1f} of the {total / 1e9:.1f} GB of GPU {index}",
                "they take the training's memory and its time",
                "nvidia-smi --query-compute-apps=pid,used_memory --format=csv",
            )


def threads(_: Subject) -> Notes:
    """Cores, and the threads that torch starts on them."""
    import torch  # noqa: PLC0415 - what is looked at may be broken

    from eco_fast.utils.workers import cores  # noqa: PLC0415 - likewise

    most = cores()
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text(encoding="ascii").split()
        most = most if quota == "max" else min(most, max(1, round(int(quota) / int(period))))
    except (OSError, ValueError):  # no such control group
        pass
    yield Fact("cores", str(most))
    yield Fact("threads", str(torch.get_num_threads()))
    yield Fact("load", os.getloadavg()[0])  # what is measured beside other programs may be too slow
    if torch.get_num_threads() > most:
        yield Finding(
            f"torch starts {torch.get_num_threads()} threads on {most} cores",
            "they wait for each other in turns: the steps take several times as long",
            f"export OMP_NUM_THREADS={most}",
        )


def settings(_: Subject) -> Notes:
    """Variables that were set to look for an error, and left."""
    for name, effect in SETTINGS.items():
        if (value := os.environ.get(name, "")) not in OFF:
            yield Finding(f"{name}={value} is set", effect, f"unset {name}")


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _why_not_imported(module: str) -> str | None:
    try:
        import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken library may raise anything
        return _first_line(error)
    return None


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"


def _on_gpu(subject: Subject) -> bool:
    import torch  # noqa: PLC0415 - what is looked at may be broken

    return subject.device != "cpu" and torch.cuda.is_available()
