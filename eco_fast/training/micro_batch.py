"""`train.micro_batch = "auto"`: how many patches a device takes at once, found by measuring forward and backward pass.

Sizes go up from one patch, and none is tried that would not fit: where memory has a limit, the kernel ends a process
without a word. What a size takes is computed, and learned from the one before it: twice the patches take at most twice
the memory. The few that are nearly as fast as the best are then timed in turns, as the training runs them: compiled,
and recorded. Nothing that a training depends on changes, and all ranks come to the same answer.

What is chosen stays in the run folder, so that a resumed run makes the same bits. It is chosen anew on another kind of
device, whose bits are others anyway, and where it does not fit any more. Another number of ranks keeps it: it is what
one device takes.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from eco_fast_kernels import empty_crops, margin_of
from torch import Tensor

from eco_fast.data.batch import BatchPlanner, Crops, Samples
from eco_fast.models import Network
from eco_fast.training.cost import network_without_memory, passes_bytes, scoring_bytes
from eco_fast.training.memory import RESERVE, is_out_of_memory
from eco_fast.training.profiling import time_of
from eco_fast.training.run_folder import MICRO_BATCH
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainStep
from eco_fast.training.validation import ValidationSets
from eco_fast.utils import distributed
from eco_fast.utils.device import device_name
from eco_fast.utils.files import name_damaged, size_in_words, write_json
from eco_fast.utils.memory_meter import ADDRESSES, ON_GPU, RESIDENT, MemoryMeter

SPARE = 1.06  # of what is computed or was measured: allocators do not fill all that they take
NEARLY = 1.1  # as slow as the fastest, before a size is out of the question
SAME = 1.01  # what timing cannot tell apart: the larger one is taken
FINALISTS = 3  # sizes that are compiled
ROUNDS, MINUTE = 7, 60.0  # of timing in turns, and seconds after which there is no further round
COMPILING = {RESIDENT: 768 << 20, ADDRESSES: 640 << 20}  # bytes of torch.compile with its helpers on a CPU


@dataclass
class Search:
    """The sizes of one training, tried on its own step.

    Args:
        step: the training's; only the gradients, which the next step makes anew, are changed.
        samples: as many as this rank takes at a step.
        computed: bytes that the passes of so many patches take.
        need: of the training beside them.
    """

    step: TrainStep
    samples: Samples
    computed: Callable[[int], int]
    need: "Need"
    meter: MemoryMeter = field(init=False)
    seconds: dict[int, float] = field(default_factory=dict)
    """A patch's, by the number of patches that were taken at once; of the slowest rank."""
    stopped: str = ""
    """Why no more patches were tried."""

    def __post_init__(self) -> None:
        self.meter = MemoryMeter(self.step.device)

    def fits(self, patches: int) -> str:
        """Why so many patches would not fit on some rank, or nothing."""
        return next(filter(None, distributed.all_gather(self._fits(patches))), "")

    def climb(self, sizes: Sequence[int]) -> None:
        """Try sizes, the smallest first, until one does not fit on some rank."""
        for patches in sizes:
            if reason := self.fits(patches):
                self.stopped = f"{patches} would take {reason}"
                return
            with torch.compiler.set_stance("force_eager"):
                seconds = self._slowest([patches], rounds=1)[patches]
            if math.isinf(seconds):
                self.stopped = f"{patches} ran out of memory"
                return
            self.seconds[patches] = seconds

    def refine(self, share: int) -> None:
        """Try what lies between the largest size that fits and its double: the fewest parts that would fit."""
        largest = max(self.seconds)
        parts = -(-share // largest)
        for count in range(parts // 2 + 1, parts):
            patches, stopped = -(-share // count), self.stopped
            if largest < patches and not self.fits(patches):
                self.climb([patches])
                self.stopped = stopped
                return

    def told(self, patches: int) -> str:
        """What was tried and chosen, in one line."""
        tried = ", ".join(f"{size} ({1000 * seconds:.3g} ms)" for size, seconds in sorted(self.seconds.items()))
        stopped = f"; {self.stopped}" if self.stopped else ""
        return f"{patches} patches at once, the fastest of {tried} a patch{stopped}"

    def choose(self) -> int:
        """The fastest size; of those that are as fast, the largest."""
        fastest = min(self.seconds.values())
        close = [patches for patches, seconds in self.seconds.items() if seconds <= NEARLY * fastest]
        finalists = sorted(close, key=self.seconds.__getitem__)[:FINALISTS]
        if len(finalists) > 1:
            self.seconds |= self._slowest(finalists, rounds=ROUNDS)
        within = {patches: self.seconds[patches] for patches in finalists}
        return max(patches for patches, seconds in within.items() if seconds <= SAME * min(within.values()))

    def _fits(self, patches: int) -> str:
        before, taken = max(self.seconds, default=0), self.meter.taken()
        for room in self.meter.rooms():
            passes = self.computed(patches)
            if before:
                passes = max(passes, taken[room.kind] * patches // before)
            needed = self.need.beside + max(int(SPARE * passes), self.need.at_times[room.kind])
            if needed > room.bytes:
                return f"{size_in_words(needed)} of the {size_in_words(max(room.bytes, 0))} {room.of}"
        return ""

    def _slowest(self, sizes: Sequence[int], rounds: int) -> dict[int, float]:
        """Seconds of a patch, by size: the best of some rounds, of the slowest rank; infinite: out of memory."""
        of_ranks = distributed.all_gather(self._best(sizes, rounds))
        return {patches: max(best[patches] for best in of_ranks) for patches in sizes}

    def _best(self, sizes: Sequence[int], rounds: int) -> dict[int, float]:
        """In turns, so that a drifting clock speed hits all the same; graphs one by one, for each keeps its memory."""
        best = dict.fromkeys(sizes, math.inf)
        for group in [sizes] if self.step.recorder is None else [[one] for one in sizes]:
            works = {patches: work for patches in group if (work := self._work(patches)) is not None}
            ends = time.perf_counter() + MINUTE
            for done in range(rounds):
                for patches, work in works.items():
                    best[patches] = min(best[patches], time_of(work, 1, self.step.device) / patches)
                if done and time.perf_counter() > ends:
                    break
        return best

    def _work(self, patches: int) -> Callable[[], None] | None:
        """The passes of so many patches, made once; as one launch, where steps are recorded. None: out of memory."""

        def work() -> None:
            self.step.try_part(self.samples, patches)

        try:
            work()
            return work if self.step.recorder is None else self.step.recorder(work)
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
        if self.step.device != "cpu":
            torch.cuda.empty_cache()
        return None


class Need(NamedTuple):
    """Bytes that a training takes besides its forward and backward passes."""

    beside: int
    """All the time: moments that do not exist yet, and a checkpoint that is being written."""
    at_times: Mapping[str, int]
    """When no pass is made, by kind of memory: to validate, and to compile."""


def need_of(state: TrainingState, sets: ValidationSets, *, compiled: bool) -> Need:
    """What a training needs, whose state is there."""
    config = state.config
    weights = 4 * state.updater.weights.buffer.numel()
    beside = RESERVE // 4 + (2 * weights if state.start == 0 else 0)
    if state.device != "cpu":
        return Need(beside, {ON_GPU: 0})
    images = [*sets.images.values(), *(image for group in sets.monitored.values() for image in group.values())]
    in_shapes = network_without_memory(config.model, config.scale, config.data.patch)
    scoring = scoring_bytes(in_shapes, [(image.shape[0], image.shape[1]) for image in images])
    compiling = COMPILING if compiled else dict.fromkeys(COMPILING, 0)
    copies = (4 if state.averaged is not None else 3) * weights
    return Need(beside + copies, {kind: max(scoring, size) for kind, size in compiling.items()})


def settle_micro_batch(
    step: TrainStep, state: TrainingState, planner: BatchPlanner, sets: ValidationSets, folder: Path, label: str
) -> None:
    """Let a step take as many patches at once as its run began with, or as turns out to be best; says which and why.

    Args:
        step: the training's, before it has been made.
        state: what it trains.
        planner: of its batches.
        sets: what is validated.
        folder: the run's.
        label: precedes the line.

    Raises:
        ValueError: not even one patch fits.
    """
    config, share = state.config, -(-state.config.train.batch_size // distributed.world_size())
    one, two = (passes_bytes(config, state.device, state.precision, patches) for patches in (1, 2))
    need = need_of(state, sets, compiled=step.compiled)
    with untouched(state.network):
        search = Search(step, made_up(planner, state.device), lambda n: one + (n - 1) * (two - one), need)
        kept = distributed.on_rank0(lambda: _kept(folder / MICRO_BATCH))
        if kept and kept["device"] == device_name(state.device):
            patches = min(kept["patches"], share)
            if not (reason := search.fits(patches)):
                step.take_at_once(patches)
                print(f"{label} micro-batch: {patches} patches at once, as when the run began", flush=True)
                return
            print(f"{label} micro-batch: the run began with {patches} patches at once; now {reason}", flush=True)
        search.climb(halvings(share))
        if not search.seconds:
            smaller = "set train.compile=false" if step.compiled else "lower data.patch"
            raise ValueError(
                f"train.micro_batch=auto: no patch fits, {search.stopped}; give the run more memory, or {smaller}"
            )
        if search.stopped:
            search.refine(share)
        patches = search.choose()
    step.take_at_once(patches)
    found = {"patches": patches, "device": device_name(state.device), "seconds_of_a_patch": search.seconds}
    distributed.on_rank0(lambda: write_json(folder / MICRO_BATCH, found))
    print(f"{label} micro-batch: {search.told(patches)}", flush=True)


def halvings(share: int) -> list[int]:
    """The sizes that cut a share into 1, 2, 4, 8, ... parts, the smallest first."""
    sizes = [share]
    while sizes[-1] > 1:
        sizes.append(-(-sizes[-1] // 2))
    return sizes[::-1]


def made_up(planner: BatchPlanner, device: str) -> Samples:
    """Random crops, under the conditions half-way through the training."""
    config, count = planner.config, planner.count
    plan = planner.plan(config.train.steps // 2)
    reads, by_dali = plan.weights, config.data.downsample == "dali"

    def crops(*, wanted: bool) -> Tensor | None:
        return empty_crops(count, planner.side, margin_of(config.scale)).random_() if wanted else None

    def lr(*, wanted: bool) -> Tensor | None:
        shape = (count, config.data.patch, config.data.patch, 3)
        return torch.randint(0, 256, shape, dtype=torch.uint8) if wanted and by_dali else None

    read = Crops(
        hr=crops(wanted=reads.reads_hr),
        sr=crops(wanted=reads.reads_sr),
        lr_hr=lr(wanted=reads.reads_hr),
        lr_sr=lr(wanted=reads.reads_sr),
    )
    return Samples.of(read, planner.conditions(plan)).to(device)


@contextmanager
def untouched(network: Network) -> Iterator[None]:
    """Leave torch's random numbers and a network's buffers as they were, for it may use and change them in training."""
    before = [buffer.clone() for buffer in network.buffers()]
    with torch.random.fork_rng():
        yield
    for buffer, value in zip(network.buffers(), before, strict=True):
        buffer.copy_(value)


def _kept(path: Path) -> dict[str, Any] | None:
    with name_damaged(path):
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
