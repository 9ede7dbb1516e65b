"""Whether everything is right: the tests that need a GPU, and the quick start as a user runs it."""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from bench.gpu_day.day import Day

ROOT = Path(__file__).parents[2]
KERNELS = (
    "tests/kernels/test_networks_by_kernels.py",
    "tests/kernels/test_fused_*.py",
    "tests/kernels/test_*ops*.py",
    "tests/kernels/test_crops.py",
)
ON_A_CPU = ("_bytes.py", "_compiled.py")  # count in Triton's interpreter, or compile for GPUs that are not there
TRAINER = ("tests/gpu/test_*.py",)
STUDENT_DB = 33.39  # PSNR-Y of the quick start's student on a CPU, float32: 33.392 dB
OUTCOME = re.compile(r"^(?:\[gw\d+\] \[ *\d+%\] )?(PASSED|SKIPPED|FAILED|ERROR) (\S.*?)(?: - .*| *)$", re.MULTILINE)
KEPT = 4000  # characters of what a program says when it fails


def check_kernels(day: Day) -> None:
    """Every kernel against its reference: `tests/kernels`."""
    run_tests(day, "kernels", KERNELS, processes=12)


def check_trainer(day: Day) -> None:
    """The trainer against itself on a CPU, its loaders, graph and resume: `tests/gpu`."""
    run_tests(day, "trainer", TRAINER, processes=8)


def run_tests(day: Day, name: str, patterns: Sequence[str], processes: int) -> None:
    """Let pytest run some modules at once, and note what failed; what it says stays beside the results."""
    modules = [path for pattern in patterns for path in sorted(ROOT.glob(pattern)) if not path.name.endswith(ON_A_CPU)]
    if day.rehearse:
        modules, processes = modules[:1], 1
    log = day.out / f"{name}_tests.log"
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", "-o", "filterwarnings=default"]
    command += ["-n", str(processes), "--dist", "worksteal", *map(str, modules)]
    with log.open("w", encoding="utf-8") as file:
        try:
            limit = None if day.rehearse else day.left()
            subprocess.run(command, cwd=ROOT, timeout=limit, stdout=file, stderr=subprocess.STDOUT, check=False)
        except subprocess.TimeoutExpired:
            day.skip(f"the rest of the {name} tests")
    said = log.read_text(encoding="utf-8", errors="replace")
    print(said[-KEPT:], flush=True)
    day.results["tests"][name] = read_log(said)


def read_log(said: str) -> dict[str, object]:
    """Of pytest's words, whole or cut off: how many tests passed, how many were skipped, and what failed."""
    outcomes = {name: outcome for outcome, name in OUTCOME.findall(said)}
    failed = [name for name, outcome in outcomes.items() if outcome in ("FAILED", "ERROR")]
    if not outcomes:
        failed = [said[-KEPT:]]
    counts = Counter(outcomes.values())
    return {"passed": counts["PASSED"], "skipped": counts["SKIPPED"], "failed": failed}


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
