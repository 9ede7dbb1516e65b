"""Which values tuning tries and picks, and what it refuses."""

import csv
import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from eco_fast import config
from eco_fast.config import Config
from eco_fast.study.comparison import PlannedRun
from eco_fast.study.tuning import Pick, describe_pick, pick, tuning_table, write_tuning
from eco_fast.study.variants import baseline_of, make_variants, seeds_of, tuned_variants, tuning_seeds_of
from eco_fast.utils.files import write_json

RATES = "optimizer.learning_rate=[1e-3, 3e-3, 1e-2]"
WARMUPS = "optimizer.warmup_steps=[0, 20]"
SEEDS = (1000, 1001)
SET = "Kodak24"


@pytest.fixture(scope="module")
def base() -> Config:
    return config.load("quickstart")


def test_a_variant_is_tried_with_every_combination_and_keeps_its_other_keys(base: Config) -> None:
    (muon,) = make_variants(base, [("muon", "optimizer.name=muon")], [])
    tried = tuned_variants(base, muon, [RATES, WARMUPS])
    points = [(one.recipe.optimizer.learning_rate, one.recipe.optimizer.warmup_steps) for one in tried]
    assert points == list(itertools.product((1e-3, 3e-3, 1e-2), (0, 20)))
    assert tried[1].name == "muon_learning_rate=0.001_warmup_steps=20"
    assert tried[1].tuned == {"optimizer.learning_rate": 1e-3, "optimizer.warmup_steps": 20}
    for one in tried:
        assert set(config.differences(muon.recipe, one.recipe)) <= set(one.tuned)
    assert tuned_variants(base, muon, []) == [muon]


def test_every_point_of_across_is_tuned_by_itself(base: Config) -> None:
    variants = make_variants(base, [("vanilla",), ("eco",)], ["train.batch_size=[2, 4]"])
    tried = [[one.name for one in tuned_variants(base, variant, [RATES])] for variant in variants]
    assert [len(names) for names in tried] == [3] * 4
    assert tried[3][0] == "eco_batch_size=4_learning_rate=0.001"
    with pytest.raises(
        ValueError, match=r"variant 'vanilla_batch_size=2' changes train.batch_size, which --tune picks"
    ):
        tuned_variants(base, variants[0], ["train.batch_size=[2, 4]"])


def test_a_number_has_one_name_however_it_is_written(base: Config) -> None:
    """A changed list finds what was run before."""
    (vanilla,) = make_variants(base, [("vanilla",)], [])
    first, second = (
        tuned_variants(base, vanilla, [f"optimizer.learning_rate={text}"]) for text in ("[1, 2]", "[1e0, 0.1]")
    )
    assert first[0] == second[0]


def test_seeds_that_pick_are_apart_from_all_that_are_scored(base: Config) -> None:
    own_and_teachers = {base.seed, base.seed + 1}
    assert not set(tuning_seeds_of(base, 50)) & (own_and_teachers | set(seeds_of(base, 998)))
    with pytest.raises(ValueError, match="--seeds: expected 1 to 998 runs of each variant, got 999"):
        seeds_of(base, 999)
    with pytest.raises(ValueError, match="--tuning-seeds: expected at least 1 run of each value, got 0"):
        tuning_seeds_of(base, 0)


def test_a_baseline_is_found_whatever_values_were_picked(base: Config) -> None:
    wanted = [
        ("lamb_vanilla", "optimizer.name=lamb", "objective.name=vanilla"),
        ("adam_vanilla", "objective.name=vanilla"),
        ("adam_eco", "objective.name=eco"),
    ]
    lamb, vanilla, eco = (tuned_variants(base, one, [RATES]) for one in make_variants(base, wanted, []))
    assert baseline_of(eco[0], [lamb[0], vanilla[2], eco[0]]) == vanilla[2], "LAMB's has the same rate"


@pytest.mark.parametrize(
    ("tune", "sentence"),
    [
        (["optimizer.learning_rate"], r"--tune takes KEY=\[VALUE, ...\].*got 'optimizer.learning_rate'"),
        (["optimizer.learning_rate=1e-3"], r"--tune takes KEY=\[VALUE, ...\]"),
        (["optimizer.learning_rate=[]"], r"--tune takes KEY=\[VALUE, ...\]"),
        (["optimizer.schedule=[cosine, step]"], r"--tune takes KEY=\[VALUE, ...\]"),
        (
            ["optimizer.learning_rat=[1, 2]"],
            r"--tune: unknown key optimizer.learning_rat \(did you mean optimizer.learn",
        ),
        (["optimizer=[{}, {}]"], "--tune: unknown key optimizer;"),
        (
            ["optimizer.learning_rate=['fast', 1]"],
            "--tune optimizer.learning_rate: input .* valid number, got 'fast'",
        ),
        (["optimizer.learning_rate=[1, 0]"], "--tune optimizer.learning_rate: input .* greater than 0, got 0"),
        (
            ["optimizer.warmup_steps=[1, 2.5]"],
            "--tune optimizer.warmup_steps: input .* valid integer, got 2.5",
        ),
        (
            ["optimizer.learning_rate=[1e-3]"],
            r"--tune optimizer.learning_rate: expected two or more different values, got \[0.001\]",
        ),
        (["optimizer.learning_rate=[1e-3, 0.001]"], "expected two or more different values, got"),
        (["teacher.steps=[1, 2]"], "--tune teacher.steps: expected a key of objective, optimizer, train in which"),
        (["train.device=['cpu', 'cuda']"], "--tune train.device: expected a key of"),
        (["model.blocks=[1, 2]"], "--tune model.blocks: expected a key of"),
        ([RATES, RATES], "--tune: expected each key once, got optimizer.learning_rate="),
        ([WARMUPS], "variant 'late' changes optimizer.warmup_steps, which --tune picks; leave one of the two out"),
        (["objective.name=['eco', 'residual']"], "variant 'late': objective.name=residual cannot be scored"),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_sentence(base: Config, tune: Sequence[str], sentence: str) -> None:
    (variant,) = make_variants(base, [("late", "optimizer.warmup_steps=7")], [])
    with pytest.raises(ValueError, match=sentence):
        tuned_variants(base, variant, tune)


def picked(base: Config, folder: Path, tune: Sequence[str], scores: Mapping[str, Sequence[float]]) -> Pick:
    """The pick among vanilla's values with these scores on the validation, by value and seed; fewer: one has failed."""
    (vanilla,) = make_variants(base, [("vanilla",)], [])
    tried = tuned_variants(base, vanilla, tune)
    runs = [PlannedRun(one, seed, folder / one.name / str(seed), one.recipe) for seed in SEEDS for one in tried]
    for run in runs:
        values = scores[run.variant.name.partition("_")[2]]
        if len(values) > (place := SEEDS.index(run.seed)):
            run.folder.mkdir(parents=True)
            last = {SET: {"psnr_y": values[place]}, "Set5": {"psnr_y": -values[place]}}
            write_json(run.scores, {"last": last, "best": {SET: {"psnr_y": 99.0}}})
    return pick(vanilla, tried, runs, SET)


def test_the_best_mean_over_the_seeds_on_the_validation_wins(base: Config, tmp_path: Path) -> None:
    scores = {"learning_rate=0.001": (31.0, 33.0), "learning_rate=0.003": (32.5, 32.0), "learning_rate=0.01": (34.0,)}
    found = picked(base, tmp_path, [RATES], scores)
    assert found.picked.recipe.optimizer.learning_rate == 3e-3, "one seed of 0.01 has failed"
    assert found.ends == {}
    assert describe_pick(found) == "tuned: vanilla: learning_rate=0.003"
    write_tuning(tmp_path, [found])
    with (tmp_path / "tuning.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["optimizer.learning_rate"], row["psnr_y"], row["seeds"], row["picked"]) for row in rows] == [
        ("0.001", "32.0", "2", "False"),
        ("0.003", "32.25", "2", "True"),
        ("0.01", "", "0", "False"),
    ]


def test_a_pick_at_the_end_of_its_range_is_said_to_be_one(base: Config, tmp_path: Path) -> None:
    scores = {
        f"learning_rate={rate}_warmup_steps={steps}": (30 + rate + steps,) * 2
        for rate in (0.001, 0.003, 0.01)
        for steps in (0, 20)
    }
    found = picked(base, tmp_path, [RATES, WARMUPS], scores)
    assert found.ends == {"optimizer.learning_rate": "largest", "optimizer.warmup_steps": "largest"}
    assert "the largest optimizer.learning_rate tried: name a larger one too" in describe_pick(found)
    (row,) = tuning_table([found]).rows
    assert row[-2:] == ["learning_rate=0.01_warmup_steps=20", "largest learning_rate, largest warmup_steps"]


def test_words_have_no_range(base: Config, tmp_path: Path) -> None:
    scores = {"schedule=cosine": (30.0, 30.0), "schedule=constant": (30.0, 30.0)}
    found = picked(base, tmp_path, ["optimizer.schedule=['cosine', 'constant']"], scores)
    assert found.picked.recipe.optimizer.schedule == "cosine", "the first of equals"
    assert found.ends == {}


def test_a_variant_that_no_value_suits_is_refused(base: Config, tmp_path: Path) -> None:
    scores: dict[str, tuple[float, ...]] = {f"learning_rate={rate}": () for rate in (0.001, 0.003, 0.01)}
    with pytest.raises(ValueError, match="variant 'vanilla': none of the values of --tune could be trained to the end"):
        picked(base, tmp_path, [RATES], scores)
