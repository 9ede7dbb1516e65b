"""Runs under limits of memory from too small to ample: each ends well or with one sentence, and none is killed.

python -m bench.soak_memory [RUNS [SETTING ...]]     50 runs, half of them compiled; settings as `train.batch_size=16`

The limit is that of `ulimit -v`. Beside each one are its exit code and its last words.
"""

import resource
import subprocess
import sys
import tempfile
from pathlib import Path

TOO_SMALL, AMPLE = 700 << 20, 3 << 30  # bytes of addresses: Python with torch takes a third of the latter
RECIPE = """
extends = "quickstart"
[objective]
name = "vanilla"
[train]
steps = 6
batch_size = 32
micro_batch = "auto"
baseline = false
device = "cpu"
"""


def run(folder: Path, name: str, limit: int, settings: list[str]) -> "subprocess.CompletedProcess[str]":
    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    options = [f"--{setting}" for setting in settings]
    command = [sys.executable, "-m", "eco_fast", "train", "recipe.toml", "--run", name, *options]
    return subprocess.run(command, cwd=folder, preexec_fn=limited, capture_output=True, text=True, check=False)


def main(runs: int, settings: list[str]) -> int:
    """Returns how many runs ended neither well nor with one sentence."""
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "recipe.toml").write_text(RECIPE, encoding="utf-8")
        for index in range(runs):
            limit = TOO_SMALL + (AMPLE - TOO_SMALL) * (index // 2) // max(runs // 2 - 1, 1)
            compiled = f"train.compile={'false' if index % 2 else 'true'}"
            done = run(Path(folder), f"run-{index}", limit, [compiled, *settings])
            well = done.returncode == 0 or (done.returncode == 2 and done.stderr.startswith("eco-fast: "))
            bad += not well
            chosen = [line for line in done.stdout.splitlines() if "micro-batch" in line]
            words = (done.stderr if done.returncode else "\n".join(chosen)).strip().splitlines()[-1:]
            print(f"{limit / 1e9:.2f} GB, {compiled}: {done.returncode} {'' if well else 'BAD '}{words}", flush=True)
    print(f"{runs} runs, {bad} of them ended badly")
    return bad


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50, sys.argv[2:]) > 0)
