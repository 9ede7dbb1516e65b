"""A rank that meets a fault at a place of its training; runs in a process of its own.

In the call that `PLACES` says, one rank suffers the fault; all others shorten at their place how long they wait for
another, so that nobody waits for half an hour. Nothing here goes by time.
"""

import os
import resource
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d

from eco_fast.cli.main import main
from eco_fast.data.store import Store
from tests.helpers import become_rank, wait_until

STEP = 7
"""In which the fault is, counted from 0."""
TIMEOUT = 1234
"""Seconds that a rank waits for another by the recipe."""
ENOUGH = timedelta(seconds=5)
"""How long the others wait for a rank that does not come; each step takes a few milliseconds."""
FULL = 10_000
"""Bytes beyond which no file grows on a full disk: less than a state, a pack of images or one of centroids."""
TRAINING = "eco_fast.training"


class Place(NamedTuple):
    """Where a fault is met: in the call of a function, `visit` counted from 0."""

    at: str
    visit: int = 0
    others: str = ""
    """What the other ranks call at about the same time or before, where it is not the same."""
    others_visit: int | None = None
    """Which of these calls, where it is not `visit`."""


SAVE = f"{TRAINING}.checkpoints:Checkpoints.save"
PLAN = "eco_fast.inference.centroids:_plan"
PLACES = {
    "start": Place(f"{TRAINING}.pipeline:Pipeline.begin"),
    "centroids": Place("eco_fast.inference.centroids:upscale_tiled", others=PLAN),
    # loaders prepare batches ahead, one rank's more than another's: the others wait less from their first step on
    "loading": Place("eco_fast.data.loader:PlainLoader._prepare", STEP, f"{TRAINING}.step:TrainingLoss.forward", 0),
    "forward": Place(f"{TRAINING}.step:TrainingLoss.forward", STEP),
    # a step marks three stages as they begin: forward, backward, and the optimizer's, which begins with the reduction
    "backward": Place(f"{TRAINING}.step:TrainStep._mark", 3 * STEP + 1),
    "reduce": Place(f"{TRAINING}.step:TrainStep._mark", 3 * STEP + 2),
    "update": Place(f"{TRAINING}.optim.optimizer_step:OptimizerStep.step", STEP),
    "validation": Place(f"{TRAINING}.validation:validation_scores"),
    "checkpoint": Place(f"{TRAINING}.checkpoints:save_weights", 1, others=SAVE),
}
"""In the order of a run."""
PLACES_OF = {
    ("corrupt", "centroids"): Place(PLAN),  # before the image is read for the first time, and hashed
    ("corrupt", "loading"): PLACES["loading"]._replace(visit=0),
    ("NaN", "checkpoint"): Place(SAVE, 1),  # before the weights are copied
}
"""Those of some faults."""


class Meeting(NamedTuple):
    """Of a rank with a fault."""

    fault: str
    place: str
    victim: int
    entered: Any
    """Of each rank, whether it has come to its place, or, if one is slow, how many exchanges it has begun; shared."""


def run_rank(folder: Path, rank: int, world: int, port: int, arguments: list[str], meeting: Meeting | None) -> None:
    """`eco-fast ARGUMENTS` as one rank; what it says goes to the files FOLDER/RANK.out and .err."""
    os.chdir(folder)
    become_rank(rank, world, port, [Path(f"{rank}.out"), Path(f"{rank}.err")])
    # the store that the ranks share is none's, as under torchrun
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    os.environ["TORCHELASTIC_ERROR_FILE"] = f"{rank}.json"
    torch.set_num_threads(1)
    for drawn in ("draw_curves", "draw_samples", "report_if_possible"):  # they take longer than all the rest
        setattr(import_module(f"{TRAINING}.pipeline"), drawn, lambda *_: None)
    if meeting is not None:
        place = PLACES_OF.get((meeting.fault, meeting.place), PLACES[meeting.place])
        if meeting.fault == "slow":
            _count_exchanges(meeting.entered, rank)
        if rank == meeting.victim:
            _before(place.at, place.visit, _suffering(meeting), again=meeting.fault == "slow")
        else:
            visit = place.visit if place.others_visit is None else place.others_visit
            _before(place.others or place.at, visit, lambda *_: _wait_less(meeting, rank))
    sys.exit(main(arguments))


def _before(target: str, visit: int, work: Callable[..., Any], *, again: bool = False) -> None:
    """Do some work before a call of a function (`again`: and all later ones); what it returns is done behind it."""
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = import_module(module)
    for one in owners:
        owner = getattr(owner, one)
    real, visits = getattr(owner, name), 0

    def called(*arguments: Any, **options: Any) -> Any:
        nonlocal visits
        visits += 1
        after = work(*arguments) if visits == visit + 1 or (again and visits > visit) else None
        result = real(*arguments, **options)
        return after(result) if after else result

    setattr(owner, name, called)


def _wait_less(meeting: Meeting, rank: int) -> None:
    assert dist.group.WORLD is not None
    options = dist.group.WORLD._get_backend(torch.device("cpu")).options
    assert options._timeout == timedelta(seconds=TIMEOUT)
    distributed_c10d._set_pg_timeout(ENOUGH)
    meeting.entered[rank] += meeting.fault != "slow"


def _suffering(meeting: Meeting) -> Callable[..., Any]:
    """What befalls the rank, which notes that it happens now, and which checkpoint is whole at this moment."""
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    works: dict[str, Callable[..., Any]] = {
        "killed": lambda *_: os.kill(os.getpid(), signal.SIGKILL),
        "stopped": lambda *_: os.kill(os.getpid(), signal.SIGSTOP),
        "cut": _cut,
        "full": lambda *_: resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, hard)),
        "corrupt": _rot,
        "slow": lambda *_: _come_last(meeting),
    }
    work = NANS[meeting.place] if meeting.fault == "NaN" else works[meeting.fault]

    def suffer(*arguments: Any) -> Any:
        if meeting.place == "start":  # until then, others may still look for this rank
            _come_last(meeting)
        state = Path("run/checkpoints/last.state.pt")
        saved = torch.load(state, weights_only=True)["step"] if state.exists() else 0
        Path("met.partial").write_text(str(saved), encoding="utf-8")
        Path("met.partial").rename("met")
        return work(*arguments)

    if meeting.place == "backward" and meeting.fault != "slow":
        return lambda step, *_: _inside_backward(step, suffer)
    return suffer


def _inside_backward(step: Any, work: Callable[[Tensor], Tensor | None]) -> None:
    """When the gradient of the first weight is made, which work may replace."""

    def once(gradient: Tensor) -> Tensor | None:
        handle.remove()
        return work(gradient)

    handle: Any = step.weights[0].register_hook(once)


def _count_exchanges(entered: Any, rank: int) -> None:
    for name in ("all_reduce", "all_gather_object", "broadcast_object_list"):
        real = getattr(dist, name)

        def counted(*arguments: Any, real: Callable[..., Any] = real, **options: Any) -> Any:
            entered[rank] += 1
            return real(*arguments, **options)

        setattr(dist, name, counted)


def _come_last(meeting: Meeting) -> None:
    """Wait until all others wait, in an exchange that this rank has not begun."""
    own, entered = meeting.victim, meeting.entered
    wait_until(lambda: all(count > entered[own] for rank, count in enumerate(entered) if rank != own))


def _cut(*_: Any) -> None:
    """Every connection of this process ends."""
    for link in list(Path("/proc/self/fd").iterdir()):
        with suppress(OSError):  # it is no socket
            connection = socket.socket(fileno=os.dup(int(link.name)))
            with connection:
                listens = connection.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if connection.family in (socket.AF_INET, socket.AF_INET6) and not listens:
                    connection.shutdown(socket.SHUT_RDWR)


def _rot(*_: Any) -> None:
    """Change bits that nobody has read yet: of an image to make a centroid of, or of all centroids."""
    made = list(Path("run/store").glob("centroids/*/manifest.json"))
    store = Store(made[0].parent if made else Path("run/store"))
    for entry in store.entries if made else store.entries[1:2]:
        with (store.folder / entry.file).open("r+b") as file:
            file.seek(entry.offset)
            content = file.read(100)
            file.seek(entry.offset)
            file.write(bytes(255 - value for value in content))


def _nan_sum(step: Any, *_: Any) -> None:
    step.updater.sums[0] = torch.nan


def _nan_weight(updater: Any, *_: Any) -> Callable[[Any], Any]:
    def after(skipped: Any) -> Any:
        updater.weights.buffer[0] = torch.nan
        return skipped

    return after


def _nan_checkpoint(_: Any, network: Any, *__: Any) -> None:
    with torch.no_grad():
        next(network.parameters())[0] = torch.nan


NANS: dict[str, Callable[..., Any]] = {
    "forward": lambda *_: lambda loss: loss * torch.nan,
    "backward": lambda gradient: gradient * torch.nan,
    "reduce": _nan_sum,
    "update": _nan_weight,
    "checkpoint": _nan_checkpoint,
}
"""What is no number any more."""
