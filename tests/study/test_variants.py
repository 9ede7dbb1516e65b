"""Which arms a comparison has, and which it refuses."""

import pytest

from eco_fast import config
from eco_fast.config import Config
from eco_fast.study.variants import baseline_of, make_arms, seeds_of


@pytest.fixture(scope="module")
def base() -> Config:
    return config.load("quickstart")


def test_the_four_objectives_are_the_default(base: Config) -> None:
    arms = make_arms(base, [], [])
    assert [arm.name for arm in arms] == ["vanilla", "kd", "noise_free", "eco"]
    assert [arm.recipe.objective.name for arm in arms] == ["vanilla", "kd", "noise_free", "eco"]


def test_an_arm_changes_the_keys_it_names_and_no_other(base: Config) -> None:
    (arm,) = make_arms(base, [("late", "objective.alpha_shift=2.0", "optimizer.learning_rate=2e-3")], [])
    assert set(config.differences(base, arm.recipe)) == {"objective.alpha_shift", "optimizer.learning_rate"}
    assert (arm.recipe.objective.alpha_shift, arm.recipe.optimizer.learning_rate) == (2.0, 2e-3)


def test_figure_4_pairs_each_batch_with_vanilla_of_the_same_batch(base: Config) -> None:
    arms = make_arms(base, [("vanilla",), ("eco",)], ["train.batch=[2, 4]"])
    assert [(arm.name, arm.recipe.train.batch) for arm in arms] == [
        ("vanilla_batch=2", 2),
        ("vanilla_batch=4", 4),
        ("eco_batch=2", 2),
        ("eco_batch=4", 4),
    ]
    baselines = [one.name if (one := baseline_of(arm, arms)) else None for arm in arms]
    assert baselines == [None, None, "vanilla_batch=2", "vanilla_batch=4"]


def test_arms_of_several_teachers_share_one_vanilla_arm(base: Config) -> None:
    arms = make_arms(base, [("vanilla",), ("kd",)], ["""teacher=[{steps=300}, {checkpoint="nets/dat_x2.pth"}]"""])
    assert [arm.name for arm in arms] == ["vanilla", "kd_steps=300", "kd_checkpoint=dat_x2"]
    assert arms[1].recipe.teacher.steps == 300
    assert arms[2].recipe.teacher.checkpoint == "nets/dat_x2.pth"
    assert all(baseline_of(arm, arms) == arms[0] for arm in arms[1:])


def test_seeds_are_neither_the_recipes_own_nor_its_teachers(base: Config) -> None:
    assert seeds_of(base, 3) == [2, 3, 4]


@pytest.mark.parametrize(
    ("arm", "across", "sentence"),
    [
        (("ecco",), (), "arm 'ecco' is neither an objective nor says what it changes.*did you mean eco"),
        (("eco", "objective.alfa=1"), (), r"arm 'eco': unknown key objective.alfa \(did you mean objective.alpha"),
        (("eco", "train.batch=0"), (), "arm 'eco': train.batch: .*greater than or equal to 1"),
        (("eco", "scale=3"), (), "arm 'eco' changes scale, which all arms of a comparison have in common"),
        (("eco", "seed=3"), (), "arm 'eco' changes seed"),
        (("eco", "data.patch=16"), (), "arm 'eco' changes data.patch"),
        (("eco", "train.device=cuda:1"), (), "arm 'eco' changes train.device"),
        (("a/b", "train.batch=2"), (), "arm 'a/b': an arm is a folder, so its name has no slash"),
        (("eco",), ("train.batch",), r"--across takes KEY=\[VALUE, ...\].*got 'train.batch'"),
        (("eco",), ("train.batch=[]",), r"--across takes KEY=\[VALUE, ...\]"),
    ],
)
def test_a_bad_arm_is_refused_in_one_sentence(
    base: Config, arm: tuple[str, ...], across: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_arms(base, [arm], across)


def test_two_arms_of_one_name_or_of_one_run_are_refused(base: Config) -> None:
    with pytest.raises(ValueError, match="two arms are called 'eco'"):
        make_arms(base, [("eco",), ("eco", "train.batch=2")], [])
    with pytest.raises(ValueError, match="arms 'eco' and 'same' are the same run"):
        make_arms(base, [("eco",), ("same", "train.batch=8")], [])


def test_no_seeds_are_refused(base: Config) -> None:
    with pytest.raises(ValueError, match="--seeds: expected at least 1 run of each arm, got 0"):
        seeds_of(base, 0)
