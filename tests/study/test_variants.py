"""Which variants a comparison has, and which it refuses."""

import pytest

from eco_fast import config
from eco_fast.config import Config
from eco_fast.study.variants import baseline_of, make_variants, seeds_of


@pytest.fixture(scope="module")
def base() -> Config:
    return config.load("quickstart")


def test_the_four_objectives_are_the_default(base: Config) -> None:
    variants = make_variants(base, [], [])
    assert [variant.name for variant in variants] == ["vanilla", "kd", "noise_free", "eco"]
    assert [variant.recipe.objective.name for variant in variants] == ["vanilla", "kd", "noise_free", "eco"]


def test_a_variant_changes_the_keys_it_names_and_no_other(base: Config) -> None:
    (variant,) = make_variants(base, [("late", "objective.alpha_shift=2.0", "optimizer.learning_rate=2e-3")], [])
    assert set(config.differences(base, variant.recipe)) == {"objective.alpha_shift", "optimizer.learning_rate"}
    assert (variant.recipe.objective.alpha_shift, variant.recipe.optimizer.learning_rate) == (2.0, 2e-3)


def test_figure_4_pairs_each_batch_with_vanilla_of_the_same_batch(base: Config) -> None:
    variants = make_variants(base, [("vanilla",), ("eco",)], ["train.batch_size=[2, 4]"])
    assert [(variant.name, variant.recipe.train.batch_size) for variant in variants] == [
        ("vanilla_batch_size=2", 2),
        ("vanilla_batch_size=4", 4),
        ("eco_batch_size=2", 2),
        ("eco_batch_size=4", 4),
    ]
    baselines = [one.name if (one := baseline_of(variant, variants)) else None for variant in variants]
    assert baselines == [None, None, "vanilla_batch_size=2", "vanilla_batch_size=4"]


def test_variants_of_several_teachers_share_one_vanilla_variant(base: Config) -> None:
    variants = make_variants(
        base, [("vanilla",), ("kd",)], ["""teacher=[{steps=300}, {checkpoint="nets/dat_x2.pth"}]"""]
    )
    assert [variant.name for variant in variants] == ["vanilla", "kd_steps=300", "kd_checkpoint=dat_x2"]
    assert variants[1].recipe.teacher.steps == 300
    assert variants[2].recipe.teacher.checkpoint == "nets/dat_x2.pth"
    assert all(baseline_of(variant, variants) == variants[0] for variant in variants[1:])


def test_seeds_are_neither_the_recipes_own_nor_its_teachers(base: Config) -> None:
    assert seeds_of(base, 3) == [2, 3, 4]


@pytest.mark.parametrize(
    ("variant", "across", "sentence"),
    [
        (("ecco",), (), "variant 'ecco' is no objective and changes no key.*did you mean eco"),
        (("eco", "objective.alfa=1"), (), r"variant 'eco': unknown key objective.alfa \(did you mean objective.alpha"),
        (("eco", "train.batch_size=0"), (), "variant 'eco': train.batch_size: .*greater than or equal to 1"),
        (("eco", "scale=3"), (), "variant 'eco' changes scale, which all variants share"),
        (("eco", "seed=3"), (), "variant 'eco' changes seed"),
        (("eco", "data.patch=16"), (), "variant 'eco' changes data.patch"),
        (("eco", "train.device=cuda:1"), (), "variant 'eco' changes train.device"),
        (("a/b", "train.batch_size=2"), (), "variant 'a/b': the name becomes a folder and must not contain a slash"),
        (("eco",), ("train.batch_size",), r"--across takes KEY=\[VALUE, ...\].*got 'train.batch_size'"),
        (("eco",), ("train.batch_size=[]",), r"--across takes KEY=\[VALUE, ...\]"),
    ],
)
def test_a_bad_variant_is_refused_in_one_sentence(
    base: Config, variant: tuple[str, ...], across: tuple[str, ...], sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        make_variants(base, [variant], across)


def test_two_variants_of_one_name_or_of_one_run_are_refused(base: Config) -> None:
    with pytest.raises(ValueError, match="two variants are called 'eco'"):
        make_variants(base, [("eco",), ("eco", "train.batch_size=2")], [])
    with pytest.raises(ValueError, match="variants 'eco' and 'same' are the same run"):
        make_variants(base, [("eco",), ("same", f"train.batch_size={base.train.batch_size}")], [])


def test_no_seeds_are_refused(base: Config) -> None:
    with pytest.raises(ValueError, match="--seeds: expected 1 to 998 runs of each variant, got 0"):
        seeds_of(base, 0)
