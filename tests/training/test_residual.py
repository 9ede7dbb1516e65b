"""Objective `residual` against its formula, and the runs that it refuses."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from eco_fast import config
from eco_fast.config import Config
from eco_fast.data.images import Pixels, write_png
from eco_fast.data.objective import blend_weights_at
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.precision import set_precision
from eco_fast.training.state import TrainingState
from eco_fast.training.step import TrainingLoss, TrainStep
from tests.helpers import plain_loader

PATCH, BATCH = 8, 3


def recipe(**changes: Any) -> Config:
    values: dict[str, Any] = {
        "data": {"patch": PATCH},
        "model": {"features": 8, "blocks": 1},
        "objective": {"name": "residual"},
        "train": {"steps": 8, "batch_size": BATCH, "compile": False, "device": "cpu"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section][name] = value
    return config.validate(values, "test")


@pytest.fixture(scope="module")
def hr(photo: Pixels) -> list[Pixels]:
    return [photo[60:120, 120:180].copy(), photo[150:200, 200:270].copy()]


@pytest.fixture(scope="module")
def sr(photo: Pixels) -> list[Pixels]:
    return [255 - photo[60:120, 120:180], photo[100:150, 20:90].copy()]


def by_the_formula(residual: Tensor, hr: Tensor, sr: Tensor, kind: str) -> Tensor:
    """In float64: the mean distance from HR - SR, with mid-grey as its zero; windows have a margin of 4 pixels."""
    hr, sr = (window[:, 4:-4, 4:-4].permute(0, 3, 1, 2).double() for window in (hr, sr))
    difference = residual * 255 - (hr - sr + 127.5)
    if kind == "l2":
        return difference.square().mean()
    return difference.abs().mean() if kind == "l1" else (difference.square() + 0.255**2).sqrt().mean()


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "compiled"), [("l1", False), ("l2", False), ("charbonnier", False), ("l1", True)])
def test_the_loss_is_the_distance_from_what_the_centroid_lacks(
    kind: str, compiled: bool, hr: list[Pixels], sr: list[Pixels]
) -> None:
    made = recipe(objective__loss=kind)
    batch = plain_loader(made, hr, sr).batch_at(5)
    network = TrainingState(made, "cpu", None, "test").network
    loss = TrainingLoss(network, made.data, made.objective, set_precision(made.train, "cpu"))
    if compiled:
        torch.compiler.reset()
        loss.compile(fullgraph=True, dynamic=False)
    seen: list[Tensor] = []
    network.register_forward_hook(lambda _, __, output: seen.append(output))
    value = loss(batch.samples, torch.ones(()))
    residual = seen[0].detach().double().requires_grad_()
    assert batch.samples.hr is not None
    assert batch.samples.sr is not None
    expected = by_the_formula(residual, batch.samples.hr, batch.samples.sr, kind)
    assert value.item() == pytest.approx(expected.item(), rel=1e-6)
    if not compiled:
        (ours,) = torch.autograd.grad(value, seen[0])
        (right,) = torch.autograd.grad(expected, residual)
        assert (ours - right).norm() <= 1e-5 * right.norm()


class Constant(nn.Module):
    """Makes the same image of every LR."""

    def __init__(self, level: float) -> None:
        super().__init__()
        self.scale = 2
        self.picture = nn.Parameter(torch.full((1, 3, 2 * PATCH, 2 * PATCH), level))

    def forward(self, lr: Tensor) -> Tensor:
        return self.picture.expand(len(lr), -1, -1, -1).contiguous(memory_format=torch.channels_last)


def test_residual_l2_minimum_is_mid_grey(hr: list[Pixels], sr: list[Pixels]) -> None:
    """The least squares over all images of an LR are at their mean residual, which is none (paper, Appendix B)."""
    made = recipe(objective__loss="l2", train__batch_size=2)
    side = 2 * (PATCH + 4)
    pattern = 20 * (1 - 2 * ((torch.arange(side)[:, None, None] + torch.arange(side)[None, :, None]) % 2))
    centroid = torch.full((2, side, side, 3), 120)
    pictures = torch.stack([centroid[0] + pattern, centroid[1] - pattern])
    batch = plain_loader(made, hr, sr).batch_at(0).samples._replace(hr=pictures.byte(), sr=centroid.byte())

    def gradient(level: float, samples: slice) -> Tensor:
        network: Any = Constant(level)
        loss = TrainingLoss(network, made.data, made.objective, set_precision(made.train, "cpu"))
        loss(batch.part(samples), torch.ones(())).backward()
        (parameter,) = loss.parameters()
        assert parameter.grad is not None
        return parameter.grad

    each = gradient(0.5, slice(0, 1)).abs().min()
    assert gradient(0.5, slice(0, 2)).abs().max() < 1e-6 * each, "no image alone is content with mid-grey"
    assert gradient(0.49, slice(0, 2)).max() < -each / 100
    assert gradient(0.51, slice(0, 2)).min() > each / 100


def test_parts_of_a_batch_give_the_same_update(hr: list[Pixels], sr: list[Pixels]) -> None:
    weights = []
    for parts in (0, 1):
        made = recipe(train__micro_batch=parts)
        state = TrainingState(made, "cpu", None, "test")
        step = TrainStep(state, BATCH)
        step(plain_loader(made, hr, sr).batch_at(0))
        weights.append(torch.cat([weight.flatten() for weight in state.network.parameters()]))
    assert torch.equal(weights[0].sign(), weights[1].sign())
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=1e-6)


def test_the_input_is_the_real_lr_at_every_step(hr: list[Pixels], sr: list[Pixels]) -> None:
    made = recipe()
    for step in (0, 7):
        mix = blend_weights_at(made.objective, step, 8)
        assert (mix.input, mix.reads_hr, mix.reads_sr) == (1, True, True)
        assert plain_loader(made, hr, sr).batch_at(step).samples.input_alpha == 1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data__validation": ["x"]}, "add --data.validation"),
        ({"data__monitor": ["x"]}, "add --data.monitor"),
        ({"data__test": ["x"], "train__baseline": True}, "add --data.test --train.baseline false"),
    ],
)
def test_what_would_score_residuals_is_refused(
    changes: Any, named: str, hr: list[Pixels], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("train", "x"):
        write_png(Path(name) / "a.png", hr[0])
    with pytest.raises(ValueError, match=re.escape(f"residuals, which have no PSNR; {named}, and look")):
        run_recipe(recipe(data__train=["train"], **changes), Path("run"))
    assert not Path("run").exists()
