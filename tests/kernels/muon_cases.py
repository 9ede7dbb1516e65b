"""Matrices, and a step of Muon written from its formula in float64, for the tests of the definition and the kernels."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from eco_fast_kernels.muon import Matrices, MuonOptions, MuonTensors
from torch import Tensor

BETAS, EPSILON, DECAY, FACTOR = (0.8, 0.95), 1e-6, 0.9, 0.1
ALL_OPTIONS: dict[str, Any] = {
    "average": True,
    "weight_decay": 0.1,
    "clip_value": 0.05,
    "inverse_scale": 0.25,
    "learning_rate": 0.02,
}


def spectrum(rows: int, columns: int, *, smallest: float) -> Tensor:
    """A matrix with singular values from 1 down to `smallest`, each the same part of the one before: float64."""
    size = min(rows, columns)
    left, right = (torch.linalg.qr(torch.randn(length, size, dtype=torch.float64))[0] for length in (rows, columns))
    values = torch.logspace(0, math.log10(smallest), size, dtype=torch.float64)
    matrix: Tensor = left * values @ right.T
    return matrix


def laid_out(*shapes: tuple[int, int, int]) -> tuple[list[Matrices], int]:
    """Matrices of shapes (number, rows, columns), one behind the other, and where the last one ends."""
    made, end = [], 0
    for number, rows, columns in shapes:
        pitch = math.ceil(rows * columns / 4) * 4
        made.append(Matrices(end, pitch, number, rows, columns))
        end += number * pitch
    return made, end


def exact_orthogonal(matrix: Tensor) -> Tensor:
    """The formula for one matrix, in float64."""
    x = matrix.double()
    if x.shape[0] > x.shape[1]:
        return exact_orthogonal(x.T).T
    x = x / max(float((x * x).sum().sqrt()), 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x


def options_of(given: dict[str, Any]) -> MuonOptions:
    """The options of a step; what is no option is left out."""
    chosen = {name: given[name] for name in ("weight_decay", "clip_value") if name in given}
    return MuonOptions(FACTOR, *BETAS, epsilon=EPSILON, average_decay=DECAY, **chosen)


def scalars_of(given: dict[str, Any], device: str = "cpu", *, skip: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Learning rate, skip flag and 1 / scale."""
    rate, inverse = given.get("learning_rate", 0.01), given.get("inverse_scale", 1.0)
    return tuple(torch.tensor(value, device=device) for value in (rate, skip, inverse))  # type: ignore[return-value]


def fresh(matrices: Sequence[Matrices], size: int, others: int, *, average: bool, device: str = "cpu") -> MuonTensors:
    """Weights and an empty memory: `size` values of the matrices, then others; zeros between the matrices."""
    weights = torch.zeros(size + others)
    for one in matrices:
        one.of(weights).copy_(torch.randn(one.number, one.rows, one.columns) * 0.05)
    weights[size:] = torch.randn(others) * 0.05
    zeros = [torch.zeros(length, device=device) for length in (size, others, others, 2)]
    weights = weights.to(device)
    return MuonTensors(weights, torch.zeros_like(weights), weights.clone() if average else None, *zeros)


def gradients_of(matrices: Sequence[Matrices], size: int, others: int) -> Tensor:
    """Noise of very different sizes; the last matrix never gets any, nor do the zeros between them."""
    gradients = torch.zeros(size + others)
    for index, one in enumerate(matrices[:-1]):
        one.of(gradients).copy_(torch.randn(one.number, one.rows, one.columns) * 10.0 ** (index % 3 - 2))
    gradients[size:] = torch.randn(others) * 0.1
    return gradients


@dataclass
class ExactMuon:
    """The step in float64, matrix by matrix, and for the other weights as Adam's paper writes it."""

    matrices: Sequence[Matrices]
    size: int
    weights: Tensor
    average: Tensor
    steps: int = 0

    def __post_init__(self) -> None:
        self.momentum, self.first, self.second = (torch.zeros_like(self.weights) for _ in range(3))

    def step(self, gradients: Tensor, given: dict[str, Any]) -> None:
        self.steps += 1
        rate, decay = float(torch.tensor(given.get("learning_rate", 0.01))), given.get("weight_decay", 0.0)
        bound = given.get("clip_value", math.inf)
        g = (gradients.double() * given.get("inverse_scale", 1.0)).clamp(-bound, bound)
        self.momentum = 0.95 * self.momentum + g
        self.first = BETAS[0] * self.first + (1 - BETAS[0]) * g
        self.second = BETAS[1] * self.second + (1 - BETAS[1]) * g * g
        m_hat, v_hat = (
            moment / (1 - beta**self.steps) for moment, beta in zip((self.first, self.second), BETAS, strict=True)
        )
        update = FACTOR * (m_hat / (v_hat.sqrt() + EPSILON) + decay * self.weights)
        nesterov = g + 0.95 * self.momentum
        for one in self.matrices:
            larger = math.sqrt(max(1.0, one.rows / one.columns))
            for place, source, weights in zip(one.of(update), one.of(nesterov), one.of(self.weights), strict=True):
                place.copy_(larger * exact_orthogonal(source) + decay * weights)
        self.weights = self.weights - rate * update
        self.average = DECAY * self.average + (1 - DECAY) * self.weights


def error(made: Tensor, true: Tensor) -> float:
    """The norm of the difference, over that of the true value."""
    return float((made.cpu().double() - true).norm() / true.norm())
