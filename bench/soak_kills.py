"""Runs killed at random moments, also while writing a checkpoint, end in the same bits as an undisturbed run.

python -m bench.soak_kills [RUNS]
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

RECIPE = """
[data]
train = ["builtin:train"]
patch = 16
[model]
features = 32
blocks = 4
[objective]
name = "vanilla"
[train]
steps = 60
batch_size = 2
log_every = 3
checkpoint_every = 1
keep_checkpoints = 2
ema_decay = 0.9
device = "cpu"
compile = false
"""


def start(folder: Path, run: str, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "eco_fast", "train", "recipe.toml", "--run", run, *more]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate()
    if process.returncode != 0:
        raise SystemExit(f"a run was lost:\n{said}")
    return said


def main(runs: int) -> None:
    random.seed(0)
    writing = 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "recipe.toml").write_text(RECIPE, encoding="utf-8")
        finish(start(folder, "unbroken"))
        expected = {
            part: (folder / "unbroken" / part).read_bytes()
            for part in ("metrics.jsonl", "checkpoints/last.safetensors")
        }
        for index in range(runs):
            run = f"run-{index}"
            process = start(folder, run)
            while not list(folder.glob(f"{run}/checkpoints/*.state.pt")) and process.poll() is None:
                time.sleep(0.01)
            time.sleep(random.uniform(0, 2))  # noqa: S311 - a moment, no secret
            process.send_signal(signal.SIGKILL)
            process.communicate()
            half = [path.name for path in folder.glob(f"{run}/checkpoints/.*.partial")]
            writing += bool(half)
            said = finish(start(folder, run, "--resume"))
            where = [line for line in said.splitlines() if "continues at" in line]
            for part, content in expected.items():
                if (folder / run / part).read_bytes() != content:
                    raise SystemExit(f"{run}: {part} differs after {where}")
            print(f"run {index}: {where[0]}{', killed while writing ' + half[0] if half else ''}", flush=True)
    print(f"{runs} runs end in the same bits; {writing} were killed while a checkpoint was being written")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20)
