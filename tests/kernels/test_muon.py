"""Muon's definition against its formula in float64, against torch's own Muon and AdamW, and by its singular values."""

from typing import Any

import pytest
import torch
from eco_fast_kernels.checks import check_muon
from eco_fast_kernels.muon import Matrices, muon_step, orthogonalise
from torch import Tensor
from torch.nn import Parameter

from tests.kernels.muon_cases import (
    ALL_OPTIONS,
    BETAS,
    EPSILON,
    FACTOR,
    ExactMuon,
    error,
    exact_orthogonal,
    fresh,
    gradients_of,
    laid_out,
    options_of,
    scalars_of,
    spectrum,
)

SHAPES = (3, 16, 54), (2, 30, 8), (1, 12, 12), (2, 5, 7), (1, 1, 9), (1, 9, 1), (1, 4, 6)


@pytest.mark.parametrize("shape", [(64, 576), (180, 60), (32, 72), (8, 24), (1, 9), (9, 1)])
def test_singular_values_of_random_matrices(shape: tuple[int, int]) -> None:
    made = orthogonalise(torch.randn(3, *shape) * 1e-3)
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.3


@pytest.mark.parametrize("shape", [(16, 144), (144, 16), (24, 24)])
@pytest.mark.parametrize("smallest", [0.3, 0.01, 0.004])
def test_singular_values_of_ill_conditioned_matrices(shape: tuple[int, int], smallest: float) -> None:
    matrix = spectrum(*shape, smallest=smallest)
    made = orthogonalise(matrix[None].float())[0]
    values = torch.linalg.svdvals(made)
    assert values.min() > 0.6
    assert values.max() < 1.3
    assert error(made, exact_orthogonal(matrix)) < 1e-4
    # the singular vectors stay: what is left is symmetric and positive
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    between = left.T @ made.double() @ right.T
    assert (between - between.diag().diag()).abs().max() < 1e-3
    assert between.diag().min() > 0.6


def test_a_matrix_of_zeros_and_a_tiny_one_stay_finite() -> None:
    made = orthogonalise(torch.stack([torch.zeros(4, 9), torch.full((4, 9), 1e-30), torch.full((4, 9), 1e15)]))
    assert made.isfinite().all()
    assert not made[0].any()
    assert torch.linalg.svdvals(made[2])[0] > 0.6


def run(given: dict[str, Any], steps: int) -> tuple[Any, ExactMuon]:
    """Steps by the definition in float32, the fifth of which is skipped, and by the formula in float64."""
    matrices, size = laid_out(*SHAPES)
    tensors = fresh(matrices, size, 41, average=given.get("average", False))
    exact = ExactMuon(matrices, size, tensors.weights.double(), tensors.weights.double())
    for step in range(steps):
        gradients = gradients_of(matrices, size, 41)
        tensors.gradients.copy_(gradients)
        if step == 4:
            tensors.gradients[::3] = float("nan")
        muon_step(tensors, matrices, options_of(given), *scalars_of(given, skip=step == 4))
        if step != 4:
            exact.step(gradients, given)
    return tensors, exact


@pytest.mark.parametrize("options", [{}, *({name: value} for name, value in ALL_OPTIONS.items()), ALL_OPTIONS], ids=str)
def test_twenty_steps_against_float64(options: dict[str, Any]) -> None:
    tensors, exact = run(options, 20)
    size = tensors.momentum.numel()
    for part in (slice(size), slice(size, None)):
        assert error(tensors.weights[part], exact.weights[part]) < 1e-5
    assert error(tensors.momentum, exact.momentum[:size]) < 1e-6
    assert error(tensors.exp_avg, exact.first[size:]) < 1e-6
    assert error(tensors.exp_avg_sq, exact.second[size:]) < 1e-6
    assert tensors.corrections.tolist() == pytest.approx([1 - beta**19 for beta in BETAS], rel=1e-6)
    if options.get("average"):
        assert error(tensors.average, exact.average) < 1e-5
    *_, untouched = laid_out(*SHAPES)[0]
    assert options.get("weight_decay") or not untouched.of(tensors.momentum).any()


def test_the_other_weights_are_torchs_adamw() -> None:
    matrices, size = laid_out((1, 4, 6))
    tensors = fresh(matrices, size, 50, average=False)
    weight = Parameter(tensors.weights[size:].double())
    theirs = torch.optim.AdamW([weight], lr=0.01 * FACTOR, betas=BETAS, eps=EPSILON, weight_decay=0.1)
    for _ in range(20):
        tensors.gradients.copy_(torch.randn(size + 50))
        weight.grad = tensors.gradients[size:].double()
        theirs.step()
        muon_step(tensors, matrices, options_of({"weight_decay": 0.1}), *scalars_of({}))
    assert error(tensors.weights[size:], weight.detach()) < 1e-6


@pytest.mark.parametrize("shape", [(24, 54), (54, 24)])
def test_the_matrices_are_torchs_muon(shape: tuple[int, int]) -> None:
    """Which multiplies in bfloat16: its steps are ours to about 1 %."""
    matrices, size = laid_out((1, *shape))
    tensors = fresh(matrices, size, 1, average=False)
    before = matrices[0].of(tensors.weights)[0].clone()
    weight = Parameter(before.clone())
    theirs = torch.optim.Muon([weight], lr=0.01, weight_decay=0.1, momentum=0.95, nesterov=True)
    for _ in range(5):
        tensors.gradients.copy_(torch.randn(size + 1))
        weight.grad = matrices[0].of(tensors.gradients)[0].clone()
        theirs.step()
        muon_step(tensors, matrices, options_of({"weight_decay": 0.1}), *scalars_of({}))
    moved = matrices[0].of(tensors.weights)[0] - before
    assert error(moved, (weight.detach() - before).double()) < 0.02


def test_the_order_of_a_filters_values_means_nothing() -> None:
    """In channels_last and not: the same step, to the rounding of its sums."""
    filters = torch.randn(6, 4, 3, 3)

    def update(memory_format: torch.memory_format) -> Tensor:
        laid = filters.contiguous(memory_format=memory_format)
        made = torch.empty_like(laid)
        matrices = Matrices(0, 216, 1, 6, 36)
        matrices.of(made).copy_(orthogonalise(matrices.of(laid)))
        return made

    torch.testing.assert_close(update(torch.channels_last), update(torch.contiguous_format), rtol=1e-4, atol=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "dtype": ({"momentum": torch.zeros(24).double()}, r"momentum must be contiguous float32 \[24\], got torch.float64"),
    "size": ({"exp_avg": torch.zeros(4)}, r"exp_avg must be contiguous float32 \[5\], got torch.float32 \(4,\)"),
    "strides": ({"gradients": torch.zeros(58)[::2]}, r"gradients must be .* \[29\], .* with strides \(2,\)"),
    "device": ({"average": torch.zeros(29, device="meta")}, "average is on meta, the rest on cpu; move it there"),
    "none": ({"matrices": []}, "expected at least one matrix, got none"),
    "beyond": ({"matrices": [Matrices(0, 28, 1, 4, 7)]}, "those before it and within the first 24 values"),
    "overlap": ({"matrices": [Matrices(0, 12, 1, 3, 4), Matrices(8, 12, 1, 3, 4)]}, "must lie behind those before it"),
    "place": ({"matrices": [Matrices(2, 12, 1, 3, 4)]}, "at multiples of 4"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    changes, words = REFUSED[case]
    matrices, size = laid_out((1, 4, 6))
    tensors = fresh(matrices, size, 5, average=True)
    check_muon(tensors, matrices)
    matrices = changes.get("matrices", matrices)
    fields = {name: value for name, value in changes.items() if name != "matrices"}
    with pytest.raises(ValueError, match=words):
        check_muon(tensors._replace(**fields), matrices)
