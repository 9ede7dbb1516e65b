"""Two processes start one run at the same instant, again and again: one trains, and its result is that of one alone.

    python bench/soak_two_starts.py [TIMES]

Half of the times on a file system without flock. Ends with exit status 1 at the first that goes wrong.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

RUN = """
import errno, fcntl, sys
from eco_fast.cli.main import main
if sys.argv.pop(1) == "without":
    def flock(file, operation):
        raise OSError(errno.ENOSYS, "Function not implemented")
    fcntl.flock = flock
import eco_fast.training.pipeline
print("ready", flush=True)
input()
sys.exit(main(sys.argv[1:]))
"""
KEYS = """
--data.train builtin:validation --data.validation --data.test --data.patch 8 --data.loader plain
--objective.name vanilla --model.features 4 --model.blocks 1 --train.steps 6 --train.batch_size 2
--train.device cpu --train.compile false --train.log_every 1 --train.checkpoint_every 2
"""


def start(folder: Path, flock: str) -> "subprocess.Popen[str]":
    """A process that trains at a line on its stdin."""
    command = [sys.executable, "-c", RUN, flock, "train", "quickstart", "--run", str(folder), *KEYS.split()]
    process = subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def results(folder: Path) -> list[bytes]:
    """What depends on the recipe alone."""
    return [(folder / name).read_bytes() for name in ("metrics.jsonl", "checkpoints/last.safetensors")]


def soak(times: int) -> None:
    """Start pairs of processes; raises AssertionError at the first that goes wrong."""
    with tempfile.TemporaryDirectory() as place:
        alone = start(Path(place, "alone"), "with")
        alone.communicate("\n")
        wanted = results(Path(place, "alone"))
        for count in range(times):
            folder = Path(place, str(count))
            both = [start(folder, "with" if count % 2 else "without") for _ in range(2)]
            for process in both:
                assert process.stdin is not None
                process.stdin.write("\n")
                process.stdin.flush()
            said = [process.communicate()[1] for process in both]
            assert sorted(process.returncode for process in both) == [0, 2], said
            refused = said[[process.returncode for process in both].index(2)]
            assert "in use by process" in refused or "already holds a run" in refused, refused
            assert results(folder) == wanted
            print(f"{count + 1} of {times}: {refused.strip()}", flush=True)


if __name__ == "__main__":
    soak(int(sys.argv[1]) if len(sys.argv) > 1 else 50)
