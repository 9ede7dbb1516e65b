"""Work on all cores, in processes that start in a fraction of a second and end with the one that started them.

multiprocessing runs the main program again, or copies a process that has threads; a worker here imports nothing but
what the function needs.
"""

import os
import pickle
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import IO, Any, TypeVar

Item = TypeVar("Item")
Answer = TypeVar("Answer")
SERVE = "from eco_fast.utils.workers import serve; serve()"


def cores() -> int:
    """How many this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def in_parallel(
    function: Callable[[Item], Answer], items: Sequence[Item], workers: int
) -> Iterator[tuple[int, Answer]]:
    """Apply a function of a module to every item.

    Args:
        function: what it raises is raised here.
        items: what pickle takes.
        workers: processes; 1: here.

    Yields:
        (index, result), in the order in which they are ready.

    Raises:
        ValueError: a process has died.
    """
    if workers <= 1:
        for index, item in enumerate(items):
            yield index, function(item)
        return
    left = iter(enumerate(items))
    lock, results = threading.Lock(), queue.SimpleQueue[tuple[int, bool, Any]]()
    processes = [_start() for _ in range(workers)]
    threads = [
        threading.Thread(target=_feed, args=(process, function, left, lock, results), daemon=True)
        for process in processes
    ]
    try:
        for thread in threads:
            thread.start()
        for _ in items:
            index, done, value = results.get()
            if not done:
                assert isinstance(value, BaseException)
                raise value
            yield index, value
    finally:
        for process in processes:
            process.kill()
        for thread in threads:
            thread.join()
        for process in processes:
            process.communicate()


def serve() -> None:
    """A worker: applies functions to items from stdin until it is closed."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no answer
    while True:
        try:
            function, item = pickle.load(sys.stdin.buffer)  # noqa: S301 - of the process that started this one
        except EOFError:
            return
        try:
            answer = (True, function(item))
        except Exception as error:  # noqa: BLE001 - raised by the other process
            answer = (False, error)
        try:
            answers.write(pickle.dumps(answer))
            answers.flush()
        except BrokenPipeError:  # the other process has been killed
            os._exit(1)


def _start() -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}  # noqa: PTH109
    return subprocess.Popen(  # in a process group of its own: Ctrl-C is for this process
        [sys.executable, "-c", SERVE],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
        process_group=0,
    )


def _feed(
    process: subprocess.Popen[bytes],
    function: Callable[[Item], Answer],
    left: Iterator[tuple[int, Item]],
    lock: threading.Lock,
    results: "queue.SimpleQueue[tuple[int, bool, Any]]",
) -> None:
    while True:
        with lock:
            index, item = next(left, (-1, None))
        if index < 0:
            return
        try:
            done, value = _ask(process, (function, item))
        except (EOFError, OSError, pickle.UnpicklingError):
            why = "a worker process has ended (out of memory?); run the same command again, it goes on where it was"
            results.put((index, False, ValueError(why)))
            return
        results.put((index, done, value))


def _ask(process: subprocess.Popen[bytes], question: object) -> tuple[bool, object]:
    requests: IO[bytes] | None = process.stdin
    assert requests is not None
    assert process.stdout is not None
    pickle.dump(question, requests)
    requests.flush()
    answer: tuple[bool, object] = pickle.load(process.stdout)  # noqa: S301 - of our own worker
    return answer
