"""Curves of training are those that are kept; and this would notice if one number of a recipe or of D were another."""

import pytest
from eco_fast_kernels import downsampling

from tests.golden.curves import (
    CURVES,
    NETWORKS,
    STEPS,
    TOLERANCES,
    WORLDS,
    Curve,
    conditions,
    kept,
    name_of,
    recipe,
    train,
    train_all,
)

pytestmark = pytest.mark.slow
MOVED = "if that is meant, say in CHANGELOG.md what moves them and write them anew: python -m tests.golden.curves"


@pytest.fixture(scope="module")
def trained() -> dict[str, Curve]:
    return train_all()


def moved(curve: Curve, other: Curve, tolerance: float) -> bool:
    """Whether any loss differs by more than its share."""
    return curve.losses != pytest.approx(other.losses, rel=tolerance)


@pytest.mark.parametrize("network", NETWORKS)
def test_every_bit_is_the_one_that_is_kept(network: str, trained: dict[str, Curve]) -> None:
    """Losses of all steps, and in the end weights, running average, moments and counters."""
    made_on, curves = kept(network)
    here = conditions()
    others = [f"{fact} {here[fact]} instead of {there}" for fact, there in made_on.items() if here[fact] != there]
    if others:
        pytest.skip(f"on {', '.join(others)} the losses are compared to {TOLERANCES[network]:.0e} of their value alone")
    names = [name for name, curve in curves.items() if trained[name] != curve]
    assert not names, MOVED


@pytest.mark.parametrize("network", NETWORKS)
def test_every_loss_is_near_the_one_that_is_kept(network: str, trained: dict[str, Curve]) -> None:
    """On any processor, with any torch."""
    _, curves = kept(network)
    assert set(curves) == {name_of(*curve, world) for curve in CURVES if curve[0] == network for world in WORLDS}
    assert {len(curve.losses) for curve in curves.values()} == {STEPS}
    assert not [name for name, curve in curves.items() if moved(trained[name], curve, TOLERANCES[network])], MOVED


@pytest.mark.parametrize(("network", "objective"), CURVES)
def test_two_ranks_follow_the_curve_of_one(network: str, objective: str, trained: dict[str, Curve]) -> None:
    one, two = (trained[name_of(network, objective, world)] for world in WORLDS)
    assert not moved(two, one, TOLERANCES[network])


@pytest.mark.parametrize(
    ("changes", "stencil"),
    [
        ({"seed": 1}, None),
        ({"optimizer.betas": [0.9, 0.998]}, None),
        ({"objective.alpha_shift": 0.01}, None),
        ({}, (-3, -9, 30, 110)),
    ],
    ids=["seed", "beta of Adam", "constant of alpha", "tap of D"],
)
def test_one_changed_number_moves_the_curve(
    changes: dict[str, object], stencil: tuple[int, ...] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By more than another processor may."""
    if stencil:
        monkeypatch.setitem(downsampling.STENCILS, 2, (stencil, downsampling.STENCILS[2][1]))
    _, curves = kept("edsr")
    assert moved(train(recipe("edsr", "eco", changes)), curves[name_of("edsr", "eco", 1)], TOLERANCES["edsr"])


def test_a_second_training_in_another_process_makes_the_same_bits(trained: dict[str, Curve]) -> None:
    assert train(recipe("edsr", "eco")) == trained[name_of("edsr", "eco", 1)]
