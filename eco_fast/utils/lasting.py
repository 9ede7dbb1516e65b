"""What a long run survives: an output that nobody reads any more, and a disk that is away for a while."""

import errno
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, TextIO, TypeVar

T = TypeVar("T")
AWAY = frozenset(
    (
        *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EREMOTEIO, errno.ENOENT, errno.ENODEV),
        *(errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ENETDOWN, errno.ENETUNREACH, errno.ECONNRESET, errno.EAGAIN),
    )
)
"""What network file systems answer while their server is away."""
TRIES = 120
PAUSE = 5.0  # seconds between two of them


def patiently(path: Path, work: Callable[[], T]) -> T:
    """Do what writes to a path, and may be done twice; again and again while the disk is away.

    Raises:
        OSError: it has been away for `TRIES` times `PAUSE`, or something else is wrong.
    """
    for _ in range(TRIES):
        try:
            return work()
        except OSError as error:
            if error.errno not in AWAY:
                raise
            print(f"warning: {path}: {error.strerror}; tried again in {PAUSE:.0f} s", flush=True)
            time.sleep(PAUSE)
    return work()


@contextmanager
def lasting_output() -> Iterator[None]:
    """Let the block go on in silence where its terminal, its pipe or the disk under its log is lost."""
    with ExitStack() as stack:
        if sys.stdout is not None:  # None: closed before the start, as by >&-
            stack.enter_context(redirect_stdout(_Lasting(sys.stdout, "stdout")))
        if sys.stderr is not None:
            stack.enter_context(redirect_stderr(_Lasting(sys.stderr, "stderr")))
        yield


class _Lasting:
    """A text stream that leads nowhere once it cannot be written."""

    def __init__(self, stream: TextIO, name: str) -> None:
        self._stream, self._name = stream, name

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._lose(error)
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._lose(error)

    def _lose(self, error: OSError) -> None:
        """Let the file itself lead nowhere, for what is in the stream's buffer goes there at the process's end."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, self._stream.fileno())
        os.close(nowhere)
        if self._name == "stdout":
            with suppress(OSError):
                print(f"eco-fast: stdout is lost ({error.strerror}); the run goes on", file=sys.stderr, flush=True)
