"""Whether everything is right: the tests that need a GPU, and the quick start as a user runs it."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

from bench.gpu_day.day import Day

ROOT = Path(__file__).parents[2]
KERNELS = ("tests/kernels/test_fused_*.py", "tests/kernels/test_ops*.py", "tests/kernels/test_crops.py")
ON_A_CPU = ("test_fused_bytes.py",)  # counts in Triton's interpreter
TRAINER = ("tests/gpu/test_*.py",)
STUDENT_DB = 33.39  # PSNR-Y of the quick start's student on a CPU, float32: 33.392 dB
KEPT = 4000  # characters of what a program says when it fails


def check_kernels(day: Day) -> None:
    """Every kernel against its reference: `tests/kernels`."""
    run_tests(day, "kernels", KERNELS, processes=12)


def check_trainer(day: Day) -> None:
    """The trainer against itself on a CPU, its loaders, graph and resume: `tests/gpu`."""
    run_tests(day, "trainer", TRAINER, processes=8)


def run_tests(day: Day, name: str, patterns: Sequence[str], processes: int) -> None:
    """Let pytest run some modules at once, and note what failed; its report stays beside the results."""
    modules = [path for pattern in patterns for path in sorted(ROOT.glob(pattern)) if path.name not in ON_A_CPU]
    if day.rehearse:
        modules, processes = modules[:1], 1
    report = day.out / f"junit_{name}.xml"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    command += ["-n", str(processes), "--dist", "worksteal", f"--junitxml={report}", *map(str, modules)]
    try:
        done = subprocess.run(
            command, cwd=ROOT, timeout=None if day.rehearse else day.left(), capture_output=True, text=True, check=False
        )
        said = done.stdout + done.stderr
    except subprocess.TimeoutExpired as error:
        said = f"{(error.stdout or b'').decode(errors='replace')}\ngiven up after {error.timeout:.0f} s"
    print(said[-KEPT:], flush=True)
    day.results["tests"][name] = read_report(report) if report.is_file() else {"passed": 0, "failed": [said[-KEPT:]]}


def read_report(path: Path) -> dict[str, object]:
    """Of a JUnit file: how many tests passed, how many were skipped, and the names of those that failed."""
    passed, skipped, failed = 0, 0, []
    for case in ET.parse(path).iter("testcase"):  # noqa: S314 - pytest has just written it
        if case.find("failure") is not None or case.find("error") is not None:
            failed.append(f"{case.get('classname')}::{case.get('name')}")
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    return {"passed": passed, "skipped": skipped, "failed": failed}


def run_quick_start(day: Day) -> None:
    """`eco-fast train`, to its table."""
    keys = "--train.steps 6 --teacher.steps 6 --train.validate_every 6" if day.rehearse else ""
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "quickstart"
        command = [sys.executable, "-m", "eco_fast", "train", "quickstart", "--run", str(run)]
        command += keys.split()
        done = subprocess.run(command, cwd=ROOT, timeout=day.left_in_all(), capture_output=True, text=True, check=False)
        print((done.stdout + done.stderr)[-KEPT:], flush=True)
        if day.rehearse:  # counters that nobody computed may stop it
            return
        if done.returncode:
            raise RuntimeError(f"eco-fast train ended with {done.returncode}: {done.stderr[-KEPT:]}")
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    day.check("quick start: the student's PSNR-Y", summary["student"]["psnr_y"], STUDENT_DB - 0.05, STUDENT_DB + 0.05)
    day.results["quick_start"] = {"seconds": summary["seconds"], "student": summary["student"]}
