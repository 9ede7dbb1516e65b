"""Samples as a pure function of (seed, step), and the batches that the loader makes of them."""

import math
import threading
from contextlib import suppress
from typing import Any, cast

import numpy as np
import pytest
import torch
from eco_fast_kernels import blended_loss, downsample_blend
from scipy.stats import chisquare

from eco_fast.config import Config, Data, Objective, Train
from eco_fast.data.images import Pixels
from eco_fast.data.loader import PlainLoader
from eco_fast.data.objective import alpha_at, blend_weights_at
from eco_fast.data.sampler import CropPlan, Sampler
from tests.helpers import HANGS, assert_equal_fields, idle, oriented, plain_loader, wait_until

SURELY = 1e-3  # the stream is fixed, so a p-value above this once is above it always
SIZES = [(60, 80), (72, 76), (64, 72)]


def equal_plans(first: CropPlan, second: CropPlan) -> bool:
    return all(np.array_equal(value, vars(second)[name]) for name, value in vars(first).items())


# --- sampler ---


def test_plan_depends_on_seed_and_step_alone() -> None:
    def sampler(seed: int) -> Sampler:
        return Sampler(SIZES, scale=4, patch=12, batch_size=8, seed=seed)

    forward = [sampler(3).plan(step) for step in range(20)]
    one = sampler(3)
    backward = [one.plan(step) for step in reversed(range(20))][::-1]
    for first, second in zip(forward, backward, strict=True):
        assert equal_plans(first, second)
    others = [*forward[1:], sampler(4).plan(0), sampler(2**40).plan(0)]
    assert not any(equal_plans(forward[0], other) for other in others)


def test_no_random_number_serves_twice() -> None:
    chances = [
        Sampler(SIZES, scale=4, patch=12, batch_size=16, seed=seed).plan(step).uniform
        for seed in range(3)
        for step in range(200)
    ]
    assert len(np.unique(chances)) == 3 * 200 * 16


def test_golden_plan() -> None:
    """Freezes the stream: another plan for this seed and step would change every run that is resumed."""
    plan = Sampler(SIZES, scale=4, patch=12, batch_size=8, seed=7).plan(123)
    assert {name: value.tolist() for name, value in vars(plan).items()} == {
        "image": [0, 2, 1, 1, 1, 0, 0, 0],
        "top": [4, 8, 12, 20, 0, 8, 4, 8],
        "left": [28, 4, 12, 28, 0, 12, 32, 28],
        "flip_rows": [True, False, False, True, True, True, True, False],
        "flip_columns": [False, False, False, False, False, True, True, True],
        "transpose": [False, False, True, False, True, False, True, False],
        "uniform": [
            0.5477995036878882,
            0.148410642103194,
            0.33271889113184205,
            0.2584823054897998,
            0.0972349518554223,
            0.5596186158666976,
            0.6345824028164104,
            0.6979346375849184,
        ],
    }


def test_windows_lie_inside_on_multiples_of_the_scale() -> None:
    for scale in (2, 3, 4, 8):
        sizes = [(5 * scale, 9 * scale), (20 * scale, 5 * scale), (7 * scale, 6 * scale)]
        sampler = Sampler(sizes, scale=scale, patch=5, batch_size=500, seed=scale)
        for step in range(4):
            plan = sampler.plan(step)
            height, width = np.array(sizes)[plan.image].T
            for start, size in ((plan.top, height), (plan.left, width)):
                assert (start % scale == 0).all()
                assert (start >= 0).all()
                assert (start + 5 * scale <= size).all()


def test_images_are_drawn_in_proportion_to_their_area() -> None:
    # a window fits into the smallest in one position only: a choice by positions would differ widely
    sizes = [(24, 24), (24, 48), (96, 48), (60, 60)]
    plan = Sampler(sizes, scale=2, patch=12, batch_size=20_000, seed=1).plan(0)
    counts = np.bincount(plan.image, minlength=4)
    area = np.array([height * width for height, width in sizes])
    assert counts.min() > 0
    assert chisquare(counts, 20_000 * area / area.sum()).pvalue > SURELY


def test_every_position_is_equally_likely() -> None:
    plan = Sampler([(36, 30)], scale=3, patch=6, batch_size=20_000, seed=2).plan(5)
    positions = plan.top // 3 * 5 + plan.left // 3
    counts = np.bincount(positions, minlength=35)  # 7 rows, 5 columns: all corners are among them
    assert len(counts) == 35
    assert chisquare(counts).pvalue > SURELY


def test_every_orientation_is_equally_likely() -> None:
    plan = Sampler([(36, 30)], scale=3, patch=6, batch_size=20_000, seed=3).plan(0)
    orientation = 4 * plan.flip_rows + 2 * plan.flip_columns + plan.transpose
    assert chisquare(np.bincount(orientation, minlength=8)).pvalue > SURELY


def test_chance_is_uniform_and_nothing_depends_on_anything_else() -> None:
    plan = Sampler([(90, 96), (72, 150)], scale=3, patch=6, batch_size=20_000, seed=4).plan(0)
    assert (plan.uniform >= 0).all()
    assert (plan.uniform < 1).all()
    assert chisquare(np.histogram(plan.uniform, bins=50, range=(0, 1))[0]).pvalue > SURELY
    # shares of the way, so that positions in images of different sizes compare
    rows, columns = np.array([25, 19])[plan.image], np.array([27, 45])[plan.image]
    draws = [
        plan.image,
        plan.top / rows,
        plan.left / columns,
        plan.flip_rows,
        plan.flip_columns,
        plan.transpose,
        plan.uniform,
    ]
    correlation = np.corrcoef(np.array(draws, dtype=np.float64)) - np.eye(len(draws))
    assert np.abs(correlation).max() < 4 / math.sqrt(20_000)


# --- loader ---


def recipe(objective: Objective | None = None, *, prefetch: int = 0, batch: int = 8, steps: int = 12) -> Config:
    return Config(
        scale=2,
        seed=11,
        data=Data(patch=5, prefetch=prefetch),
        objective=objective or Objective(),
        train=Train(batch_size=batch, steps=steps),
    )


@pytest.fixture
def pictures() -> list[Pixels]:
    """Every pixel names its place: (row, column, image). The sides are not all multiples of the scale."""
    made = []
    for index, (height, width) in enumerate([(10, 10), (21, 16), (17, 30)]):
        rows, columns = np.indices((height, width))
        made.append(np.stack([rows, columns, np.full_like(rows, index)], axis=2).astype(np.uint8))
    return made


@pytest.fixture
def centroids(pictures: list[Pixels]) -> list[Pixels]:
    return [(255 - picture).astype(np.uint8) for picture in pictures]


def test_batches_hold_the_planned_windows(pictures: list[Pixels], centroids: list[Pixels]) -> None:
    loader = plain_loader(recipe(Objective(alpha="constant")), pictures, centroids)
    seen = set()
    for step, batch in enumerate(loader):
        samples = batch.samples
        assert batch.step == step
        assert samples.hr is not None
        assert samples.sr is not None
        for windows in (samples.hr, samples.sr):
            assert windows.shape == (8, 18, 18, 3)  # 2 * (5 + 4) pixels a side
            assert windows.dtype == torch.uint8
            assert windows.stride()[2:] == (3, 1)
        assert torch.equal(samples.sr, 255 - samples.hr)  # the same place and orientation in both
        plan = loader.planner.plan(step).crops
        assert samples.transposed.dtype == torch.bool
        assert samples.transposed.tolist() == plan.transpose.tolist()
        for index in range(8):
            picture = pictures[plan.image[index]]
            height, width = (size // 2 * 2 for size in picture.shape[:2])
            border = np.pad(picture[:height, :width], ((4, 4), (4, 4), (0, 0)), mode="symmetric")
            top, left = plan.top[index], plan.left[index]
            turns = {name: getattr(plan, name)[index] for name in ("flip_rows", "flip_columns", "transpose")}
            expected = oriented(border[top : top + 18, left : left + 18], **turns)
            np.testing.assert_array_equal(samples.hr[index].numpy(), expected)
            seen.add(tuple(turns.values()))
    assert len(seen) == 8


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_prefetch_changes_nothing(pictures: list[Pixels], centroids: list[Pixels], prefetch: int) -> None:
    plain = plain_loader(recipe(), pictures, centroids)
    expected = [plain.batch_at(step) for step in range(12)]
    with plain_loader(recipe(prefetch=prefetch), pictures, centroids) as loader:
        made = list(loader)
    assert len(made) == 12
    for first, second in zip(made, expected, strict=True):
        assert_equal_fields(first, second)


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("start", [0, 1, 7, 11, 12])
def test_a_later_start_skips_batches(
    pictures: list[Pixels], centroids: list[Pixels], start: int, prefetch: int
) -> None:
    config = recipe(prefetch=prefetch)
    with plain_loader(config, pictures, centroids) as whole, plain_loader(config, pictures, centroids, start) as rest:
        expected, made = list(whole)[start:], list(rest)
    assert [batch.step for batch in made] == list(range(start, 12))
    for first, second in zip(made, expected, strict=True):
        assert_equal_fields(first, second)


SCHEDULES = {
    "sigmoid": Objective(),
    "delayed": Objective(alpha_shift=1.5),
    "linear": Objective(alpha="linear"),
    "constant": Objective(alpha="constant", alpha_value=0.3),
    "vanilla": Objective(name="vanilla"),
    "noise_free": Objective(name="noise_free"),
    "kd": Objective(name="kd"),
}


def schedule(name: str, step: int, steps: int) -> tuple[float, float]:
    """Weight of the real pair in the input and in the target, from the papers."""
    progress = step / steps
    shift = 1.5 if name == "delayed" else 0.0
    sigmoid = 1 / (1 + math.exp(5 + shift - 10 * progress))
    clipped = min(max(1.2 * sigmoid - 0.1, 0.0), 1.0)
    return {
        "linear": (progress, progress),
        "constant": (0.3, 0.3),
        "vanilla": (1.0, 1.0),
        "noise_free": (0.0, 0.0),
        "kd": (1.0, 0.0),
    }.get(name, (clipped, clipped))


@pytest.mark.parametrize("prefetch", [0, 3])
@pytest.mark.parametrize("name", SCHEDULES)
def test_each_batch_is_blended_by_the_schedule_at_its_step(name: str, prefetch: int) -> None:
    """Flat images show the weight that a batch was really blended with, whatever it says."""
    objective = SCHEDULES[name]
    config = recipe(objective, prefetch=prefetch, batch=2, steps=40)
    hr, sr = [np.full((12, 12, 3), 200, np.uint8)], [np.full((12, 12, 3), 100, np.uint8)]
    steps = 0
    with plain_loader(config, hr, sr) as loader:
        for batch in loader:
            samples = batch.samples
            if prefetch and batch.step == 5:
                wait_until(lambda: idle(loader))  # it has run ahead
            of_input, of_target = schedule(name, batch.step, 40)
            assert loader.planner.weights(batch.step) == blend_weights_at(objective, batch.step, 40)
            assert samples.input_alpha.shape == samples.target_alpha.shape == ()
            assert samples.input_alpha.dtype == samples.target_alpha.dtype == torch.float32
            if objective.name == "eco":
                assert torch.equal(samples.input_alpha, torch.tensor(alpha_at(objective, batch.step / 40)))
            assert float(samples.input_alpha) == pytest.approx(of_input, abs=1e-7)
            assert float(samples.target_alpha) == pytest.approx(of_target, abs=1e-7)
            lr = downsample_blend(
                samples.hr if of_input > 0 else None,
                samples.sr if of_input < 1 else None,
                samples.input_alpha,
                2,
            )
            assert lr.unique().tolist() == pytest.approx([(100 + 100 * of_input) / 255], abs=1e-6)
            target, _ = blended_loss(torch.zeros(2, 3, 10, 10), samples.hr, samples.sr, samples.target_alpha, margin=4)
            assert float(target) == pytest.approx(100 + 100 * of_target, abs=1e-4)
            steps += 1
    assert steps == 40


@pytest.mark.parametrize("prefetch", [0, 3])
def test_alpha_sample_chooses_per_sample(prefetch: int) -> None:
    objective = Objective(alpha_sample=True)
    config = recipe(objective, prefetch=prefetch, batch=64, steps=50)
    hr, sr = [np.full((12, 12, 3), 200, np.uint8)], [np.full((12, 12, 3), 100, np.uint8)]
    drawn, expected, variance = 0.0, 0.0, 0.0
    with plain_loader(config, hr, sr) as loader:
        for batch in loader:
            samples = batch.samples
            alpha, _ = schedule("sigmoid", batch.step, 50)
            assert loader.planner.weights(batch.step) == blend_weights_at(objective, batch.step, 50)
            assert samples.input_alpha.dtype == torch.float32
            assert samples.input_alpha.shape == (64,)
            assert torch.equal(samples.input_alpha, samples.target_alpha)
            chosen = (loader.planner.plan(batch.step).crops.uniform < alpha).tolist()
            assert samples.input_alpha.tolist() == [float(choice) for choice in chosen]
            lr = downsample_blend(samples.hr, samples.sr, samples.input_alpha, 2)
            assert torch.equal(lr[:, 0, 0, 0] * 255 > 150, torch.tensor(chosen))
            drawn += float(samples.input_alpha.sum())
            expected += 64 * alpha
            variance += 64 * alpha * (1 - alpha)
    assert abs(drawn - expected) < 3 * math.sqrt(variance)


class Forbidden:
    """An image whose pixels may not be read, or a list of images that may not."""

    shape = (12, 12, 3)

    def __getitem__(self, key: object) -> Pixels:
        raise LookupError("these pixels are not to be read")

    read = __getitem__


FORBIDDEN = cast("Any", Forbidden())


@pytest.mark.parametrize("alpha_sample", [False, True])
def test_images_that_the_mix_does_not_read_are_not_touched(
    pictures: list[Pixels], centroids: list[Pixels], alpha_sample: bool
) -> None:
    vanilla = plain_loader(recipe(Objective(name="vanilla", alpha_sample=alpha_sample)), pictures, FORBIDDEN)
    assert all(batch.samples.sr is None and batch.samples.hr is not None for batch in vanilla)
    noise_free = plain_loader(recipe(Objective(name="noise_free", alpha_sample=alpha_sample)), [FORBIDDEN], centroids)
    assert all(batch.samples.hr is None and batch.samples.sr is not None for batch in noise_free)

    objective = Objective(alpha_sample=alpha_sample)
    early = plain_loader(recipe(objective, steps=100), [FORBIDDEN], centroids)
    assert all(early.batch_at(step).samples.hr is None for step in (0, 10, 26))
    late = plain_loader(recipe(objective, steps=100), pictures, FORBIDDEN)
    assert all(late.batch_at(step).samples.sr is None for step in (74, 90, 99))
    for middle, step in ((early, 27), (late, 73)):
        with pytest.raises(LookupError, match="not to be read"):
            middle.batch_at(step)
    kd = plain_loader(recipe(Objective(name="kd")), pictures, centroids).batch_at(0)
    assert kd.samples.hr is not None
    assert kd.samples.sr is not None


@pytest.mark.parametrize("prefetch", [0, 1, 4])
def test_an_error_reaches_the_consumer_after_the_good_batches(prefetch: int, fails_later: Pixels) -> None:
    config = recipe(Objective(name="vanilla"), prefetch=prefetch, batch=1)
    with plain_loader(config, [fails_later], None) as loader:
        assert [next(loader).step for _ in range(3)] == [0, 1, 2]
        with pytest.raises(OSError, match="the disk has gone"):
            next(loader)
        if prefetch:
            assert_asking_again_raises(loader, OSError)
    assert cast("Any", fails_later).reads == 4, "nothing is read after the error"


@pytest.mark.parametrize("prefetch", [1, 4])
def test_the_end_is_the_end_for_whoever_asks_again(prefetch: int, pictures: list[Pixels]) -> None:
    with plain_loader(recipe(Objective(name="vanilla"), prefetch=prefetch), pictures, None) as loader:
        assert len(list(loader)) == 12
        assert_asking_again_raises(loader, StopIteration)


def assert_asking_again_raises(loader: PlainLoader, kind: type[Exception]) -> None:
    """In a thread of its own: a loader that waits for batches which nobody makes would wait for ever."""
    raised: list[Exception] = []

    def ask() -> None:
        try:
            next(loader)
        except Exception as error:  # noqa: BLE001 - looked at below
            raised.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HANGS)
    assert [type(error) for error in raised] == [kind]


@pytest.mark.parametrize("consumed", [0, 1, 3])
@pytest.mark.parametrize("fails", [False, True])
def test_leaving_ends_the_thread_at_once(pictures: list[Pixels], consumed: int, fails: bool) -> None:
    config = recipe(Objective(name="vanilla"), prefetch=2, steps=100_000)
    with suppress(KeyboardInterrupt), plain_loader(config, pictures, None) as loader:
        for _ in range(consumed):
            next(loader)
        wait_until(lambda: idle(loader))
        if fails:
            raise KeyboardInterrupt
    assert next(loader._steps) == consumed + 2 + 1, "it has gone on"
    assert loader._thread is not None
    assert not loader._thread.is_alive()


def test_the_thread_stays_within_prefetch(pictures: list[Pixels]) -> None:
    config = recipe(Objective(name="vanilla"), prefetch=3, steps=1000)
    with plain_loader(config, pictures, None) as loader:
        next(loader)
        wait_until(lambda: idle(loader))
        made = next(loader._steps)
    assert made == 1 + 3 + 1  # one taken, three waiting, one in the thread's hands


def test_without_prefetch_there_is_no_thread(pictures: list[Pixels]) -> None:
    before = threading.active_count()
    with plain_loader(recipe(Objective(name="vanilla")), pictures, None) as loader:
        assert threading.active_count() == before
        assert len(list(loader)) == 12
        assert loader.waited > 0


def test_moving_a_batch_keeps_its_contents(pictures: list[Pixels], centroids: list[Pixels]) -> None:
    for objective in (Objective(name="vanilla"), Objective(alpha="constant")):
        batch = plain_loader(recipe(objective), pictures, centroids).batch_at(3)
        assert_equal_fields(batch._replace(samples=batch.samples.to("cpu")), batch)
