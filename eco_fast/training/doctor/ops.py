"""The ops on this device: what they compute against their definitions, and how fast against a copy of their bytes."""

import contextlib
import io
import math
from collections.abc import Iterator
from functools import partial

import torch
from eco_fast_kernels import move_crops
from eco_fast_kernels.crops import are_crops
from torch import Tensor

from eco_fast.training.ceilings import copying
from eco_fast.training.doctor.findings import Check, Fact, Finding, Notes, Subject
from eco_fast.training.doctor.op_case import CPU, OpCase, Outputs
from eco_fast.training.doctor.op_cases import CASES
from eco_fast.training.profiling import best_seconds
from eco_fast.utils.device import pick_device, why_not_compile

FEW = 4  # samples that are compared, and timed where they are few enough
MANY = 128  # samples that fill a GPU
WRONG = "a training computes something else than it says: its results cannot be trusted"


def checks(subject: Subject) -> list[Check]:
    """A check for each op that the device runs."""
    device = pick_device(subject.device)
    return [_check(case, device) for case in CASES if torch.device(device).type in case.devices]


def _check(case: OpCase, device: str) -> Check:
    check = partial(_examine, case, device)
    check.__name__ = case.name  # type: ignore[attr-defined]
    return check


def _examine(case: OpCase, device: str, subject: Subject) -> Notes:  # noqa: ARG001 - what every check gets
    if case.compiles and device == CPU and (why := why_not_compile(device)):
        yield Fact("left out", why)
        return
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        yield from _compare(case, device)
        if case.timed:
            yield from _time(case, device, FEW if device == CPU or case.compiles else MANY)
    if said.getvalue():  # what eco-fast says where its C++ cannot be compiled or kept
        consequence, _, reason = said.getvalue().strip().partition(": ")
        kept = "kept" in consequence
        mend = "export XDG_CACHE_HOME=DIR (a folder that can be written)" if kept else "apt install --reinstall g++"
        yield Finding(reason or consequence, consequence, mend)


def _compare(case: OpCase, device: str) -> Notes:
    first, second = _results(case, device), _results(case, device)
    expected = case.reference(*case.inputs(FEW))()
    assert len(first) == len(expected), case.name
    mend = f"eco-fast doctor --device {CPU} (where that is sound, it is the GPU: dmesg | grep -i xid, nvidia-smi -q)"
    if device == CPU:
        mend = "rm -rf ~/.cache/eco-fast /tmp/torchinductor_$USER; if that is no help, memtester 1G 1 (faulty memory?)"
    worst = max(_distance(one, right) for one, right in zip(first, expected, strict=True))
    yield Fact("error", worst if math.isfinite(worst) else "inf")
    if worst > case.tolerance:
        allowed = f"at most {case.tolerance:.0e}" if case.tolerance else "none"
        yield Finding(f"{case.name} is wrong on {device}: error {worst:.1e}, expected {allowed}", WRONG, mend)
    elif not all(torch.equal(one, other) for one, other in zip(first, second, strict=True)):
        yield Finding(f"{case.name} gives other bits when it is run again on {device}", WRONG, mend)


def _time(case: OpCase, device: str, samples: int) -> Iterator[Fact]:
    """The bytes of all that goes in and comes out, each moved once, against a copy of as many."""
    inputs = _inputs(case, device, samples)
    run = case.op(*inputs)
    moved = sum(tensor.nbytes for tensor in (*inputs, *run()))
    seconds = best_seconds(run, device)
    yield Fact("bytes", moved / seconds / 1e9, "GB/s")
    yield Fact("of a copy's rate", 100 * best_seconds(copying(moved // 2, device), device) / seconds, "%")


def _results(case: OpCase, device: str) -> Outputs:
    return [tensor.cpu() for tensor in case.op(*_inputs(case, device, FEW))()]


def _inputs(case: OpCase, device: str, samples: int) -> list[Tensor]:
    """On the device, laid out as they were."""
    return [move_crops(tensor, device) if are_crops(tensor) else tensor.to(device) for tensor in case.inputs(samples)]


def _distance(one: Tensor, right: Tensor) -> float:
    """The norm of the difference, relative to that of what is right; infinite where shape, dtype or a NaN differ."""
    if (one.dtype, one.shape) != (right.dtype, right.shape):
        return math.inf
    if torch.equal(one, right):
        return 0.0
    difference, norm = (one.double() - right.double()).norm(), right.double().norm()
    distance = float(difference / norm if norm else difference)
    return distance if math.isfinite(distance) else math.inf
