"""The trainer on the registered ops and on their plain-torch definitions."""

from pathlib import Path

import pytest
from eco_fast_kernels import reference
from torch import Tensor

from eco_fast import config
from eco_fast.training import step
from eco_fast.training.optim import lamb
from eco_fast.training.pipeline import run_recipe
from eco_fast.training.run_folder import RunFolder

pytestmark = pytest.mark.slow

TINY = (
    "model.features=8",
    "model.blocks=1",
    "data.patch=8",
    "train.batch_size=2",
    "train.steps=50",
    "train.log_every=1",
    "train.compile=false",
    "train.baseline=false",
    "teacher.steps=3",
    "data.train=['builtin:validation']",
    "data.validation=[]",
    "data.test=[]",
)


def losses(folder: Path, optimizer: str) -> list[float]:
    """Losses of all steps of a small ECO run."""
    recipe = config.load("quickstart", [*TINY, f"optimizer.name={optimizer}", "optimizer.clip_value=0.1"])
    run_recipe(recipe, folder)
    return [row["loss"] for row in RunFolder(folder, recipe, resume=True).rows()]


@pytest.mark.parametrize("optimizer", ["adam", "lamb"])
def test_same_losses_with_the_definitions_in_place_of_the_ops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: str
) -> None:
    with_ops = losses(tmp_path / "ops", optimizer)
    called = []

    def plain_loss(*arguments: Tensor, margin: int, gradient_scale: Tensor) -> tuple[Tensor, Tensor]:
        loss = reference.blended_loss(*arguments, margin=margin)  # type: ignore[arg-type]
        assert gradient_scale == 1
        called.append("loss")
        return loss, loss.detach().isfinite()

    monkeypatch.setattr(step, "blended_loss", plain_loss)
    monkeypatch.setattr(step, "downsample_blend", reference.downsample_blend)
    monkeypatch.setattr(lamb, "lamb_by_torch", reference.lamb_step)
    plain = losses(tmp_path / "plain", optimizer)
    assert len(called) == 53
    assert len(with_ops) == 50
    # The op's gradient is a closed form, autograd's a chain of operators: they may differ in the last bit.
    assert with_ops == pytest.approx(plain, rel=1e-5)
    assert with_ops[0] == plain[0]
    assert len(set(with_ops)) == 50
