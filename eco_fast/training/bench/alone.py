"""One case in a process of its own, so that its memory is its own and no other case's compiler or cache is in its way.

`python -m eco_fast.training.bench.alone REQUEST`, started by `measure_case`. Each line on stdout is a JSON object:
{"round": N} when a round is over, and at the end {"result": ...} or {"failed": SENTENCE}.
"""

import json
import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from eco_fast import config
from eco_fast.training.bench.cases import BenchCase
from eco_fast.training.bench.images import bench_images
from eco_fast.training.bench.timing import Spread
from eco_fast.training.bench.turns import take_turns


def measure_case(
    case: BenchCase, images: Path, folder: Path, rounds: int, on_round: Callable[[int], object]
) -> dict[str, Any]:
    """Time a case in a process of its own.

    Args:
        case: what is timed.
        images: folder of `bench_images`.
        folder: for what a training writes; new.
        rounds: how many.
        on_round: called with the number of those that are over.

    Returns:
        What `Turns.result` has; where that failed, the name and the sentence that says why, under "failed".
    """
    request = {
        "name": case.name,
        "recipe": case.recipe.model_dump(mode="json"),
        "memory_format": case.memory_format,
        "images": str(images),
        "folder": str(folder),
        "rounds": rounds,
    }
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)  # noqa: PTH109
    answer: dict[str, Any] = {}
    with subprocess.Popen(  # its own session: all that it starts ends with it, and Ctrl-C is for this process
        [sys.executable, "-m", "eco_fast.training.bench.alone", json.dumps(request)],
        env={**os.environ, "PYTHONPATH": path},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        encoding="utf-8",
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                answer = json.loads(line)
                if "round" in answer:
                    on_round(answer["round"])
            code = process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if "result" in answer:
        result: dict[str, Any] = answer["result"]
        return {**result, "figures": {name: Spread(*values) for name, values in result["figures"].items()}}
    end = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return {"name": case.name, "failed": answer.get("failed", f"its process ended by {end}; out of memory?")}


def main() -> None:
    """Time the case of the request."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever a library prints is no answer
    request = json.loads(sys.argv[1])

    def say(**answer: object) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    case = BenchCase(request["name"], config.validate(request["recipe"], request["name"]), request["memory_format"])
    try:
        images = bench_images(case.recipe, Path(request["images"]))
        with take_turns(case, images, Path(request["folder"])) as turns:
            turns.round()
            turns.rounds.clear()  # of the warm-up
            for number in range(request["rounds"]):
                turns.round()
                say(round=number + 1)
            result = turns.result()
    except ValueError as error:
        say(failed=str(error))
    except Exception as error:  # noqa: BLE001 - the other cases are to have their turn
        traceback.print_exception(error)
        say(failed=f"{type(error).__name__}: {str(error).partition(chr(10))[0]}")
    else:
        say(result=result)


if __name__ == "__main__":
    main()
