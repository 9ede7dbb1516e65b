"""Muon's kernels: with products of fp16, at most twice the error of plain torch's, against the formula in float64."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from eco_fast_kernels import muon
from eco_fast_kernels.fused import muon_step as fused
from eco_fast_kernels.fused import newton_schulz
from eco_fast_kernels.fused.newton_schulz import TiledMatrices
from eco_fast_kernels.muon import Matrices, MuonTensors
from torch import Tensor

from tests.kernels.muon_cases import (
    ALL_OPTIONS,
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

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("poisoned_memory")]

SHAPES = (2, 5, 7), (1, 30, 20), (1, 1, 3)
OTHERS = 300
TWO_ROUNDINGS = 1.2e-7  # of float32, where plain torch multiplies and adds with one


@pytest.fixture(autouse=True)
def _small_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that small matrices have several tiles and blocks, whole ones and parts."""
    monkeypatch.setattr(newton_schulz, "BY_TENSOR_CORES", newton_schulz.Tiling(32, 4))
    monkeypatch.setattr(fused, "VALUES", 256)


def by_kernels(stack: Tensor, device: str) -> Tensor:
    """Matrices [N, rows, columns], orthogonalised in tiles."""
    number, rows, columns = stack.shape
    tiled = TiledMatrices([Matrices(0, rows * columns, number, rows, columns)], 64, torch.device(device))
    places = places_of(tiled, rows, columns)
    norms = stack.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
    tiled.x[places] = (stack / norms).to(device=device, dtype=torch.float16)
    tiled.orthogonalise()
    return tiled.result[places]


def places_of(tiled: TiledMatrices, rows: int, columns: int) -> Tensor:
    """Where the table says that the values lie: int64 [N, rows, columns]."""
    first, down, across = (tiled.table[:, column, None, None].cpu() for column in (3, 4, 5))
    first = first * tiled.tiling.side**2
    return first + torch.arange(rows)[None, :, None] * down + torch.arange(columns)[None, None] * across


@pytest.mark.parametrize("shape", [(32, 96), (40, 70), (70, 20), (50, 1)])
def test_products_of_sixteen_bits(device: str, shape: tuple[int, int]) -> None:
    """Plain torch's own are those of the definition, in fp16."""
    matrices = torch.stack([torch.randn(shape), spectrum(*shape, smallest=0.02).float() * 1e-3])
    true = torch.stack([exact_orthogonal(matrix) for matrix in matrices])
    norms = matrices.flatten(1).norm(dim=1)[:, None, None]
    plain = muon.orthogonalise((matrices / norms).half())
    made = by_kernels(matrices, device)
    for one, other, exact in zip(made, plain, true, strict=True):
        assert error(one, exact) <= 2 * error(other, exact)
    values = torch.linalg.svdvals(made[1].cpu().float())
    assert values.min() > 0.6
    assert values.max() < 1.3


def test_small_singular_values_stay_bounded(device: str) -> None:
    """Five rounds do not reach those below a thousandth, and fp16 rounds them: none may grow beyond."""
    made = by_kernels(torch.stack([spectrum(16, 48, smallest=1e-6).float(), torch.zeros(16, 48)]), device)
    assert torch.linalg.svdvals(made[0].cpu().float()).max() < 1.3
    assert not made[1].any()


def test_what_lies_between_matrices_stays_zero(device: str) -> None:
    tiled = TiledMatrices([Matrices(0, 52, 2, 4, 13), Matrices(104, 60, 1, 20, 3)], 64, torch.device(device))
    tiled.x[places_of(tiled, 4, 13)[:2]] = 0.1
    tiled.orthogonalise()
    used = torch.zeros_like(tiled.result, dtype=torch.bool)
    used[places_of(tiled, 4, 13)[:2]] = True
    assert tiled.result[used].all()
    assert not tiled.result[~used].any()


class Trained:
    """Weights that some implementation moves, on one device."""

    def __init__(self, given: dict[str, Any], device: str) -> None:
        self.given, self.device = given, device
        self.matrices, self.size = laid_out(*SHAPES)
        torch.manual_seed(3)
        self.tensors: MuonTensors = fresh(
            self.matrices, self.size, OTHERS, average=given.get("average", False), device=device
        )
        self.plan = fused.MuonPlan(self.tensors, self.matrices, options_of(given))

    def step(self, gradients: Tensor, *, skip: bool = False) -> None:
        """One step by the kernels."""
        self.tensors.gradients.copy_(gradients)
        self.plan.step(*scalars_of(self.given, self.device, skip=skip))

    def bits(self) -> list[Tensor]:
        return [tensor.cpu().clone().view(torch.int32) for tensor in self.tensors if tensor is not None]


class Plain(Trained):
    """The same by the definition."""

    def step(self, gradients: Tensor, *, skip: bool = False) -> None:
        self.tensors.gradients.copy_(gradients)
        muon.muon_step(self.tensors, self.matrices, options_of(self.given), *scalars_of(self.given, skip=skip))


@pytest.fixture
def _products_of_fp16(monkeypatch: pytest.MonkeyPatch) -> None:
    """The definition, with plain torch's products of fp16."""
    exactly = muon.orthogonalise

    def orthogonalise(matrices: Tensor) -> Tensor:
        norms = matrices.flatten(1).norm(dim=1).clamp(min=1e-7)[:, None, None]
        return exactly((matrices / norms).half()).float()

    monkeypatch.setattr(muon, "orthogonalise", orthogonalise)


def given_gradients(count: int) -> list[Tensor]:
    matrices, size = laid_out(*SHAPES)
    return [gradients_of(matrices, size, OTHERS) for _ in range(count)]


@pytest.mark.usefixtures("_products_of_fp16")
@pytest.mark.parametrize("options", [{}, ALL_OPTIONS], ids=["none", "all"])
def test_steps_against_float64(device: str, options: dict[str, Any]) -> None:
    """Three steps, and a skipped one between them."""
    made, plain = Trained(options, device), Plain(options, "cpu")
    size, weights = made.size, plain.tensors.weights.double()
    exact = ExactMuon(made.matrices, size, weights, weights)
    for index, gradients in enumerate(given_gradients(4)):
        for one in (made, plain):
            one.step(gradients, skip=index == 1)
        if index != 1:
            exact.step(gradients, options)

    def parts(tensors: MuonTensors) -> dict[str, Tensor]:
        of_matrices, of_others = tensors.weights.split([size, OTHERS])
        return {**tensors._asdict(), "of matrices": of_matrices, "of others": of_others}

    true = {"of matrices": exact.weights[:size], "of others": exact.weights[size:], "momentum": exact.momentum[:size]}
    true |= {"exp_avg": exact.first[size:], "exp_avg_sq": exact.second[size:]}
    true |= {"average": exact.average} if options else {}
    for name, expected in true.items():
        usual = error(parts(plain.tensors)[name], expected)
        assert error(parts(made.tensors)[name], expected) <= max(2 * usual, TWO_ROUNDINGS), name
    assert torch.allclose(made.tensors.corrections.cpu(), plain.tensors.corrections, rtol=1e-6)


def test_programs_of_the_real_size(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    made, plain = Trained({}, device), Plain({}, "cpu")
    for gradients in given_gradients(1):
        for one in (made, plain):
            one.step(gradients)
    assert error(made.tensors.weights, plain.tensors.weights.double()) < 1e-3


def test_a_skipped_step_leaves_every_bit(device: str) -> None:
    trained, (first, second) = Trained(ALL_OPTIONS, device), given_gradients(2)
    trained.step(first)
    before = trained.bits()
    second[::3], second[1::3] = float("nan"), float("inf")
    trained.step(second, skip=True)
    weights, _, *rest = trained.bits()  # the second are the gradients
    assert all(torch.equal(*pair) for pair in zip((weights, *rest), (before[0], *before[2:]), strict=True))


def test_same_input_same_bits(device: str) -> None:
    (gradients,), pair = given_gradients(1), [Trained(ALL_OPTIONS, device) for _ in range(2)]
    for trained in pair:
        trained.step(gradients)
    assert all(torch.equal(*both) for both in zip(pair[0].bits(), pair[1].bits(), strict=True))


def test_what_is_not_to_change_does_not(device: str) -> None:
    trained, (gradients,) = Trained({}, device), given_gradients(1)
    matrices, size = laid_out(*SHAPES)
    scalars = scalars_of({}, device)
    trained.tensors.gradients.copy_(gradients)
    trained.plan.step(*scalars)
    assert torch.equal(trained.tensors.gradients.cpu(), gradients)
    assert [float(value) for value in scalars] == [float(value) for value in scalars_of({})]
    inside = torch.zeros(size, dtype=torch.bool)
    for one in matrices:
        one.of(inside).fill_(True)
    assert inside.logical_not().sum() == 3  # behind each 5 x 7 and the 1 x 3
    assert not trained.tensors.weights[:size].cpu()[~inside].any()


def launches_of(matrices: Sequence[Matrices], size: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How many kernels a step launches, of which none is run."""
    counted: list[str] = []

    class Counting:
        def __init__(self, name: str) -> None:
            self.name = name

        def __getitem__(self, grid: Any) -> Any:
            return lambda *_, **__: counted.append(self.name)

    plan = fused.MuonPlan(fresh(matrices, size, OTHERS, average=True), matrices, options_of(ALL_OPTIONS))
    with monkeypatch.context() as patch:
        for module in (fused, newton_schulz):
            for name in [name for name in vars(module) if name.endswith("_kernel")]:
                patch.setattr(module, name, Counting(name))
        plan.step(*scalars_of({}))
    return len(counted)


def test_launches_do_not_depend_on_the_number_of_weights_or_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    for shapes in [((1, 4, 4),), SHAPES, ((30, 4, 9), (20, 9, 4), (10, 4, 4), (5, 9, 9))]:
        assert launches_of(*laid_out(*shapes), monkeypatch) == 19
