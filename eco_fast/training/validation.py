"""Validation: what a network is scored on while it is trained, when, and what is reported of it."""

import math
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field

from eco_fast.config import Data
from eco_fast.config.intervals import share_of_time
from eco_fast.data.images import Pixels
from eco_fast.evaluation.benchmarks import BenchmarkSets
from eco_fast.evaluation.evaluate import json_safe
from eco_fast.evaluation.metrics import Scores, average
from eco_fast.evaluation.scoring import ImagePair, pairs_of, score_network
from eco_fast.inference.whole_images import whole_images
from eco_fast.models import Network
from eco_fast.training.precision import Precision
from eco_fast.training.state import TrainingState
from eco_fast.training.telemetry import Telemetry
from eco_fast.utils import distributed

RULE_OF_THUMB = "a teacher helps only if it scores above what the student reaches without it"  # docs/evidence.md

Pairs = Iterable[tuple[str, ImagePair]]


@dataclass(frozen=True)
class ValidationSets:
    """What a network is scored on while it is trained."""

    images: Mapping[str, Pixels] = field(default_factory=dict)
    """HR images by name; they choose best.safetensors."""
    monitored: BenchmarkSets = field(default_factory=dict)
    """Further sets, which are scored with them and choose nothing."""
    teacher_psnr: float = math.inf
    """PSNR-Y of the centroids' teacher over `images`, in dB."""


class Validation:
    """The validations of one training: when they are due, and what they report.

    The images stay on the device, with their LR images, from the first validation on.

    Args:
        state: what is trained.
        sets: what it is scored on.
        telemetry: where the scores go.
        clock: seconds, which go on.
        at: the steps after which to validate, instead of those that the recipe says.
    """

    def __init__(
        self,
        state: TrainingState,
        sets: ValidationSets,
        telemetry: Telemetry,
        clock: Callable[[], float] = time.monotonic,
        *,
        at: Collection[int] | None = None,
    ) -> None:
        self.state, self.sets, self.telemetry, self.at, self.clock = state, sets, telemetry, at, clock
        self._pairs: dict[str, list[tuple[str, ImagePair]]] = {}
        self._began, self._spent, self._last = clock(), 0.0, 0.0

    def due(self, done: int) -> bool:
        """Whether to validate after so many steps: all ranks ask, and hear the same."""
        train = self.state.config.train
        if self.at is not None:
            return done in self.at
        if not self.sets.images or done == train.steps:
            return bool(self.sets.images)
        if (share := share_of_time(train.validate_every)) is None:
            return done % int(train.validate_every) == 0
        return done % train.log_every == 0 and distributed.on_rank0(lambda: self._affordable(share))

    def run(self, done: int) -> bool:
        """Score all sets and report; whether the validation images' scores are the best so far."""
        began = self.clock()
        row: dict[str, float | None] = {}
        said = f"step {done}/{self.state.config.train.steps}"
        for name, images in {**self.sets.monitored, "": self.sets.images}.items():
            scores = self._score(name, images)
            suffix = f"/{name}" if name else ""
            row |= {f"{measure}{suffix}": value for measure, value in json_safe(scores).items()}
            said += f"  {name or 'validation'} {scores.psnr_y:.3f} dB  {scores.ssim_y:.4f}"
        self.state.network.train()
        self.telemetry.write(done, row)
        self.telemetry.say(said)
        self._last = self.clock() - began
        self._spent += self._last
        return self._is_best(scores.psnr_y)

    def foretell(self) -> float:
        """Seconds of a validation, from one of this rank's images: the largest, and the others by their pixels.

        All ranks take part. Nothing is reported.
        """
        sets = {**self.sets.monitored, "": self.sets.images}
        pairs = [pair for name, images in sets.items() for pair in self._pairs_of(name, images)]
        if not self.sets.images:
            return 0.0
        sizes = [pair.hr.shape[0] * pair.hr.shape[1] for _, pair in pairs]
        largest = [pairs[sizes.index(max(sizes))]] if pairs else []
        seconds = 0.0
        for _ in range(2):  # at first a device's libraries choose their code
            began = self.clock()
            validation_scores(self.state.result, largest, self.state.precision, self.state.device)
            seconds = self.clock() - began
        self.state.network.train()
        return seconds * sum(sizes) / max(sizes, default=1)

    def _affordable(self, share: float) -> bool:
        return self._spent + self._last <= share * (self.clock() - self._began)

    def _score(self, name: str, images: Mapping[str, Pixels]) -> Scores:
        state = self.state
        return validation_scores(state.result, self._pairs_of(name, images), state.precision, state.device)

    def _pairs_of(self, name: str, images: Mapping[str, Pixels]) -> list[tuple[str, ImagePair]]:
        state = self.state
        if name not in self._pairs:
            self._pairs[name] = list(validation_pairs(images, state.network.scale, state.config.data, state.device))
        return self._pairs[name]

    def _is_best(self, psnr: float) -> bool:
        before, self.state.best = self.state.best, max(psnr, self.state.best)
        if before < self.sets.teacher_psnr <= self.state.best:
            self.telemetry.say(f"warning: passed the teacher's {self.sets.teacher_psnr:.3f} dB; {RULE_OF_THUMB}")
        return self.state.best > before


def validation_pairs(images: Mapping[str, Pixels], scale: int, data: Data, device: str) -> Pairs:
    """This rank's validation images, with one draw of the recipe's noise."""
    return pairs_of(images, scale, data.rounding, noise_sigma=data.noise_sigma, draws=1, device=device)


def validation_scores(network: Network, pairs: Pairs, precision: Precision, device: str) -> Scores:
    """The mean scores, on Y alone, in the precision that a GPU trains in; on a CPU always in float32."""
    return average(list(score_network(network, pairs, rgb=False, arithmetic=_arithmetic(precision, device)).values()))


@contextmanager
def _arithmetic(precision: Precision, device: str) -> Iterator[None]:
    autocast = nullcontext() if device == "cpu" else precision.autocast("cuda")
    with whole_images(tf32=precision.name == "tf32"), autocast:
        yield
