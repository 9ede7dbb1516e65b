"""Validation in a training: when it happens, on what, in which arithmetic."""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.images import Pixels
from eco_fast.evaluation.metrics import Scores, average
from eco_fast.evaluation.scoring import pairs_of, score_network
from eco_fast.models.edsr import EDSR
from eco_fast.training import validation as module
from eco_fast.training.precision import Precision
from eco_fast.training.state import TrainingState
from eco_fast.training.validation import Validation, ValidationSets, validation_scores
from eco_fast.utils import distributed


class Report:
    """Keeps what a training would say."""

    def __init__(self) -> None:
        self.rows: dict[int, Mapping[str, Any]] = {}
        self.said: list[str] = []

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        self.rows[step] = row

    def say(self, words: str) -> None:
        self.said.append(words)


class Clock:
    """Stands still unless it is told to go on."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


def recipe(**train: Any) -> Config:
    values: dict[str, Any] = {
        "model": {"features": 8, "blocks": 1},
        "objective": {"name": "vanilla"},
        "train": {"steps": 1000, "log_every": 10, "compile": False, "device": "cpu", **train},
    }
    return config.validate(values, "test")


@pytest.fixture
def images(photo: Pixels) -> dict[str, Pixels]:
    return {"face": photo[60:113, 120:179], "fur": photo[200:247, 31:90]}


def validation_of(made: Config, sets: ValidationSets, clock: Clock) -> tuple[Validation, Report]:
    report = Report()
    return Validation(TrainingState(made, "cpu", None, "test"), sets, report, clock), report  # type: ignore[arg-type]


def steps_with_validations(made: Config, images: dict[str, Pixels], clock: Clock) -> list[int]:
    """Where a run validates whose steps take a second each."""
    validation, _ = validation_of(made, ValidationSets(images), clock)
    validated = []
    for done in range(1, made.train.steps + 1):
        clock.now += 1
        if validation.due(done):
            validation.run(done)
            validated.append(done)
    return validated


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """What scoring costs is 5 seconds of it."""
    clock = Clock()

    def score(*arguments: Any, **options: Any) -> Any:
        clock.now += 5
        return score_network(*arguments, **options)

    monkeypatch.setattr(module, "score_network", score)
    return clock


def test_by_steps_it_happens_at_their_multiples_and_at_the_end(images: dict[str, Pixels], clock: Clock) -> None:
    made = recipe(steps=23, validate_every=5)
    assert steps_with_validations(made, images, clock) == [5, 10, 15, 20, 23]


def test_by_time_it_takes_no_more_than_its_share_and_no_less_than_it_can(
    images: dict[str, Pixels], clock: Clock
) -> None:
    """After n validations of 5 seconds the next is due when a tenth of the time is 5 * (n + 1) seconds.

    That is at 50 * (n + 1) seconds, of which 5 * n were no steps; then comes the next multiple of 10. The first one,
    whose cost nobody knows, is due at once.
    """
    made = recipe(steps=203, validate_every="10%")
    expected = [10, *(-(-(50 * (count + 1) - 5 * count) // 10) * 10 for count in range(1, 4)), 203]
    assert expected == [10, 100, 140, 190, 203]
    assert steps_with_validations(made, images, clock) == expected


def test_all_ranks_do_what_the_first_one_says(
    images: dict[str, Pixels], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []
    validation, _ = validation_of(recipe(validate_every="50%"), ValidationSets(images), clock)
    clock.now += 1000
    for answer in (False, True):

        def on_rank0(work: Callable[[], bool], *, answer: bool = answer) -> bool:
            asked.append(work())
            return answer

        monkeypatch.setattr(distributed, "on_rank0", on_rank0)
        assert [validation.due(done) for done in (9, 10, 11)] == [False, answer, False]
    assert asked == [True, True], "at reports alone, and whatever this rank's own clock says"


def test_without_images_there_is_none(clock: Clock) -> None:
    validation, _ = validation_of(recipe(), ValidationSets(), clock)
    assert not any(validation.due(done) for done in (1000, 999, 500))


def test_it_reports_y_of_all_sets_and_keeps_their_images(
    images: dict[str, Pixels], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(images: Mapping[str, Pixels], *arguments: Any, **options: Any) -> Any:
        made.append(len(images))
        return pairs_of(images, *arguments, **options)

    monkeypatch.setattr(module, "pairs_of", make)
    fur = {"fur": images["fur"]}
    validation, report = validation_of(recipe(), ValidationSets(images, {"Fur": fur}), clock)
    network = validation.state.network
    assert validation.run(10)
    next(network.parameters()).data.mul_(1.5)
    validation.run(20)
    assert made == [1, 2]
    assert network.training
    expected = {
        name: average(list(score_network(network, pairs_of(one, 2)).values()))
        for name, one in (("", images), ("/Fur", fur))
    }
    assert report.rows[20] == {
        f"{measure}{name}": pytest.approx(scores.as_dict()[measure], rel=1e-12)
        for name, scores in expected.items()
        for measure in ("psnr_y", "ssim_y")
    }
    assert report.rows[10] != report.rows[20]
    assert validation.state.best == max(row["psnr_y"] for row in report.rows.values())


@pytest.mark.parametrize(
    ("name", "device", "dtype", "tf32"),
    [
        ("fp32", "cpu", None, False),
        ("bf16", "cpu", None, False),
        ("fp32", "cuda:0", None, False),
        ("tf32", "cuda:0", None, True),
        ("bf16", "cuda:0", torch.bfloat16, False),
        ("fp16", "cuda:0", torch.float16, False),
    ],
)
def test_it_computes_as_a_gpu_trains_and_in_float32_on_a_cpu(
    name: str, device: str, dtype: torch.dtype | None, *, tf32: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[torch.dtype] = []
    seen: list[tuple[list[torch.dtype], bool, bool]] = []
    scores = Scores(psnr_y=30, ssim_y=0.9)

    def score(*_: Any, arithmetic: AbstractContextManager[None], rgb: bool) -> dict[str, Scores]:
        assert not rgb
        with arithmetic:
            seen.append((list(opened), torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark))
        return {"face": scores}

    def autocast(_: str, dtype: torch.dtype) -> AbstractContextManager[None]:
        opened.append(dtype)
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", autocast)
    monkeypatch.setattr(module, "score_network", score)
    assert validation_scores(EDSR(2, 4, 1), [], Precision(name), device) == scores
    assert seen == [([dtype] if dtype else [], tf32, False)]


@pytest.mark.parametrize("interval", [1, 500, "2%", "0.5%", "100%"])
def test_intervals_are_steps_or_shares(interval: int | str) -> None:
    assert recipe(validate_every=interval).train.validate_every == interval
    assert config.load("quickstart", [f"train.validate_every={interval}"]).train.validate_every == interval


@pytest.mark.parametrize("interval", ["0", "-5", "0.02", "true", "2 %", "0%", "100.5%", "-1%", "%", "often", '"500"'])
def test_other_intervals_are_refused(interval: str) -> None:
    said = r"train\.validate_every: input should be a number of steps from 1, or a share .*\"2%\", got "
    with pytest.raises(ValueError, match=said):
        config.load("quickstart", [f"train.validate_every={interval}"])
