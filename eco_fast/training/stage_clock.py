"""Seconds spent in each stage of a recipe, kept in a file so that they add up over interruptions."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eco_fast.utils import distributed
from eco_fast.utils.files import name_damaged, write_json


class StageClock:
    """Seconds spent in each stage, kept in a file so that they add up over interruptions."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seconds: dict[str, float] = {}
        with name_damaged(path):
            kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
            self.seconds |= {stage: float(seconds) for stage, seconds in kept.items()}

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the time of the block to the stage, also where the block fails."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = round(self.seconds.get(name, 0.0) + time.perf_counter() - began, 1)
            if distributed.is_main_process():
                write_json(self.path, self.seconds)
