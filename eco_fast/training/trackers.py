"""Programs that show the course of a training: TensorBoard, Weights & Biases, MLflow and trackio, all by one interface.

Where they keep what they are told, and under whose name, is a matter of their own settings and variables. They are told
what metrics.jsonl holds, and the speed; nothing comes back from them, and no training depends on them.

RUN/trackers.json    the names by which they know the run, so that a resumed run goes on there
"""

import json
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from eco_fast import config
from eco_fast.training.run_folder import RunFolder
from eco_fast.utils.files import name_damaged, write_json

PROJECT = "eco-fast"
IDS = "trackers.json"
BATCH = 100  # parameters that MLflow takes at once


class Tracker(Protocol):
    """What is told of a training; it may raise whatever it likes.

    Attributes:
        id: the name by which it finds the run again; "" where it needs none.
    """

    id: str

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Take values at a step; several calls may be of one step."""

    def close(self, *, whole: bool) -> None:
        """Write what is left; `whole`: the training has come to its end."""


class TensorBoard:
    """Event files in the run folder."""

    id = ""

    def __init__(self, run: RunFolder, start: int, _: str | None) -> None:
        writer = import_module("torch.utils.tensorboard").SummaryWriter
        self._writer = writer(str(run.folder), purge_step=start or None)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self, *, whole: bool) -> None:  # noqa: ARG002 - the interface
        """See `Tracker`."""
        self._writer.close()


class WeightsAndBiases:
    """A run of Weights & Biases; its local files are in the run folder."""

    def __init__(self, run: RunFolder, _: int, known: str | None) -> None:
        wandb = import_module("wandb")
        self.id = known or uuid.uuid4().hex
        self._run = wandb.init(
            project=PROJECT,
            name=str(run.folder),
            id=self.id,
            resume="allow",
            dir=str(run.folder),
            config=config.flat(run.config),
            reinit="create_new",
            settings=wandb.Settings(console="off"),  # the output is the run's own
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`; it leaves out, and says so, what a resumed run repeats."""
        self._run.log(dict(values), step=step)

    def close(self, *, whole: bool) -> None:
        """See `Tracker`."""
        self._run.finish(exit_code=0 if whole else 1)


class Mlflow:
    """A run of MLflow, on the server or in the store of $MLFLOW_TRACKING_URI."""

    def __init__(self, run: RunFolder, _: int, known: str | None) -> None:
        mlflow = import_module("mlflow")
        self._entities, self._client = mlflow.entities, mlflow.MlflowClient()
        if known:
            self.id = known
            self._client.update_run(known, "RUNNING")
            return
        found = self._client.get_experiment_by_name(PROJECT)
        experiment = found.experiment_id if found else self._client.create_experiment(PROJECT)
        self.id = self._client.create_run(experiment, run_name=str(run.folder)).info.run_id
        parameters = [self._entities.Param(key, str(value)) for key, value in config.flat(run.config).items()]
        for begin in range(0, len(parameters), BATCH):
            self._client.log_batch(self.id, params=parameters[begin : begin + BATCH])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        now = int(time.time() * 1000)
        metrics = [self._entities.Metric(name, value, now, step) for name, value in values.items()]
        self._client.log_batch(self.id, metrics=metrics)

    def close(self, *, whole: bool) -> None:
        """See `Tracker`."""
        self._client.set_terminated(self.id, "FINISHED" if whole else "KILLED")


class Trackio:
    """A run of trackio, in $TRACKIO_DIR or its usual folder."""

    def __init__(self, run: RunFolder, _: int, known: str | None) -> None:
        self.id = known or f"{run.folder.name}-{uuid.uuid4().hex[:8]}"
        recipe = {key: str(value) for key, value in config.flat(run.config).items()}
        trackio = import_module("trackio")
        self._run = trackio.init(PROJECT, name=self.id, config=recipe, resume="allow", embed=False)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """See `Tracker`."""
        self._run.log(dict(values), step=step)

    def close(self, *, whole: bool) -> None:  # noqa: ARG002 - the interface
        """See `Tracker`."""
        self._run.finish()


OPENED: Mapping[str, Callable[[RunFolder, int, str | None], Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "mlflow": Mlflow,
    "trackio": Trackio,
}


def check_trackers(names: Iterable[str]) -> None:
    """Refuse trackers that are not installed.

    Raises:
        ValueError: names the first, and how to install it.
    """
    for name in names:
        found = find_spec(name)
        if found is None or found.origin is None:  # a folder of that name, as these programs make them
            raise ValueError(
                f"train.trackers: {name} is not installed; pip install {name}, or leave it out of --train.trackers"
            )


class Trackers:
    """The trackers of one training; one that fails is said once, and not told any more.

    Args:
        run: whose recipe names them.
        start: steps that are done already.
        say: prints a line.

    Raises:
        ValueError: one does not start; names it, and why.
    """

    def __init__(self, run: RunFolder, start: int, say: Callable[[str], None]) -> None:
        self._say, self._open = say, dict[str, Tracker]()
        path = run.folder / IDS
        known = _read(path) if start else {}
        with ExitStack() as stack:
            stack.callback(lambda: self.close(whole=False))
            for name in dict.fromkeys(run.config.train.trackers):
                try:
                    self._open[name] = OPENED[name](run, start, known.get(name))
                except Exception as error:
                    raise ValueError(
                        f"train.trackers: {name} does not start ({_reason(error)}); mend it, or leave it out of "
                        "--train.trackers"
                    ) from error
            ids = known | {name: tracker.id for name, tracker in self._open.items() if tracker.id}
            if ids:
                write_json(path, ids)
            stack.pop_all()

    def log(self, step: int, values: Mapping[str, Any]) -> None:
        """Tell all of them the values that are there at a step."""
        there = {name: value for name, value in values.items() if value is not None}
        self._of_each(lambda tracker: tracker.log(step, there))

    def close(self, *, whole: bool) -> None:
        """Let all of them end; `whole`: the training has come to its end."""
        self._of_each(lambda tracker: tracker.close(whole=whole))
        self._open.clear()

    def _of_each(self, work: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self._open.items()):
            try:
                work(tracker)
            except Exception as error:  # noqa: BLE001 - whatever it is, the training is worth more
                del self._open[name]
                self._say(f"warning: {name} failed ({_reason(error)}) and is told no more; the run goes on")


def _read(path: Path) -> dict[str, str]:
    with name_damaged(path):
        found: dict[str, str] = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return found


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
