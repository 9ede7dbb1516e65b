"""The kernels of the residual stream and its LayerNorm against float64: at most twice the error of plain torch."""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any

import pytest
import torch
from eco_fast_kernels.fused import add_norm as fused
from eco_fast_kernels.fused import column_sums
from torch import Tensor
from torch.nn import functional

from tests.kernels.tolerances import allowed, levels

pytestmark = pytest.mark.usefixtures("poisoned_memory")

EPS = 1e-5
SINGLE, HALF, BRAIN = torch.float32, torch.float16, torch.bfloat16
MIXES = ((SINGLE,) * 3, (SINGLE, BRAIN, BRAIN), (SINGLE, HALF, HALF), (BRAIN,) * 3, (HALF,) * 3, (HALF, SINGLE, BRAIN))
"""Dtypes of the stream, the branch and the normalised values."""


@dataclass
class Arguments:
    """Of the op."""

    stream: Tensor
    branch: Tensor | None
    branch_bias: Tensor | None
    factors: Tensor | None
    weight: Tensor
    bias: Tensor

    def tensors(self) -> list[Any]:
        return [getattr(self, field.name) for field in fields(self)]

    def mapped(self, change: Callable[[Tensor], Tensor]) -> "Arguments":
        changed: list[Any] = [None if one is None else change(one) for one in self.tensors()]
        return Arguments(*changed)

    def leaves(self) -> list[Tensor]:
        """What has a gradient: all but the factors."""
        return [one for one in (self.stream, self.branch, self.branch_bias, self.weight, self.bias) if one is not None]


Results = list[Tensor]
"""Total, normalised, and the gradients of the leaves."""


def random_arguments(
    shape: tuple[int, ...],
    stream: torch.dtype = SINGLE,
    branch: torch.dtype | None = SINGLE,
    vectors: torch.dtype = SINGLE,
    *,
    factors: bool = True,
) -> Arguments:
    channels = shape[-1]
    of_channels = [torch.randn(channels).to(vectors) for _ in range(3)]
    here = branch is not None
    return Arguments(
        torch.randn(shape).to(stream),
        torch.randn(shape).to(branch) if here else None,
        of_channels[0] if here else None,
        2 * torch.rand(shape[0]) if here and factors else None,
        *of_channels[1:],
    )


def results_of(
    run: Callable[[Arguments], tuple[Tensor, Tensor]], given: Arguments, upstream: list[Tensor | None]
) -> Results:
    """What `run` makes, and its gradients; a result without an upstream gradient is not used any further."""
    for leaf in given.leaves():
        leaf.requires_grad_()
    made = run(given)
    used = [(one, other) for one, other in zip(made, upstream, strict=True) if other is not None]
    outputs, gradients = zip(*used, strict=True)
    return [
        *(one.detach() for one in made),
        *torch.autograd.grad(outputs, given.leaves(), gradients, materialize_grads=True),
    ]


def kernels(given: Arguments, upstream: list[Tensor | None], dtype: torch.dtype, device: str) -> Results:
    def run(moved: Arguments) -> tuple[Tensor, Tensor]:
        total, normalised, statistics = fused.add_norm_op(*moved.tensors(), EPS, dtype)
        assert (statistics.dtype, statistics.requires_grad) == (torch.float32, False)
        if moved.branch is None:
            assert not total.numel()
        return moved.stream if moved.branch is None else total, normalised

    moved = given.mapped(lambda one: one.detach().to(device))
    made = results_of(run, moved, [None if one is None else one.to(device) for one in upstream])
    return [one.cpu() for one in made]


def as_stored(total: Tensor, stored: Tensor) -> Tensor:
    """The total as the kernel has rounded it, which is what it normalises, with the gradient of a sum."""
    return total + (stored.to(total.dtype) - total).detach()


def exact(given: Arguments, upstream: list[Tensor | None], stored: Tensor) -> Results:
    """In float64, by autograd from the formula."""

    def run(wide: Arguments) -> tuple[Tensor, Tensor]:
        total = wide.stream
        if wide.branch is not None:
            assert wide.branch_bias is not None
            factors = 1 if wide.factors is None else wide.factors.view(-1, 1, 1, 1)
            total = wide.stream + factors * (wide.branch + wide.branch_bias)
        rounded = as_stored(total, stored)
        deviation = rounded - rounded.mean(-1, keepdim=True)
        std = (deviation.square().mean(-1, keepdim=True) + EPS).sqrt()
        return total, deviation / std * wide.weight + wide.bias

    wide = given.mapped(lambda one: one.detach().double())
    return results_of(run, wide, [None if one is None else one.double() for one in upstream])


def plain(given: Arguments, upstream: list[Tensor | None], dtype: torch.dtype, stored: Tensor) -> Results:
    """In plain torch, as a network of these dtypes would do it under autocast."""

    def run(here: Arguments) -> tuple[Tensor, Tensor]:
        total = here.stream
        if here.branch is not None:
            assert here.branch_bias is not None
            branch = here.branch + here.branch_bias.to(here.branch.dtype)
            if here.factors is not None:
                branch = branch * here.factors.view(-1, 1, 1, 1)
            total = (here.stream + branch).to(here.stream.dtype)
        rounded = as_stored(total, stored).float()
        normalised = functional.layer_norm(rounded, here.weight.shape, here.weight.float(), here.bias.float(), EPS)
        return total, normalised.to(dtype)

    return results_of(run, given.mapped(lambda one: one.detach().clone()), upstream)


def check(
    given: Arguments, dtype: torch.dtype = SINGLE, *, total: bool = True, normalised: bool = True, device: str
) -> Results:
    """Results and gradients have their dtypes and shapes, and are at most twice as far from float64 as plain torch."""
    shape = given.stream.shape
    upstream = [
        torch.randn(shape).to(given.stream.dtype) if total else None,
        torch.randn(shape).to(dtype) if normalised else None,
    ]
    made = kernels(given, upstream, dtype, device)
    for one, truth, theirs in zip(
        made, exact(given, upstream, made[0]), plain(given, upstream, dtype, made[0]), strict=True
    ):
        assert (one.dtype, one.shape) == (theirs.dtype, theirs.shape)
        operations = 4 if one.ndim == 4 else 4 + levels(shape[:-1].numel())
        assert ((one.double() - truth).abs() <= allowed(theirs, truth, operations, device)).all()
    return made


@pytest.mark.parametrize("dtypes", MIXES, ids=str)
@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("channels", [5, 60, 64])
def test_results_and_gradients(device: str, dtypes: tuple[torch.dtype, ...], factors: bool, channels: int) -> None:
    check(random_arguments((2, 1, 7, channels), *dtypes[:2], factors=factors), dtypes[2], device=device)


@pytest.mark.parametrize("dtypes", MIXES, ids=str)
@pytest.mark.parametrize("channels", [5, 60])
def test_without_a_branch(device: str, dtypes: tuple[torch.dtype, ...], channels: int) -> None:
    check(random_arguments((2, 1, 7, channels), dtypes[0], None), dtypes[2], device=device)


@pytest.mark.parametrize("vectors", [HALF, BRAIN], ids=str)
def test_weights_of_16_bits(device: str, vectors: torch.dtype) -> None:
    check(random_arguments((2, 3, 3, 60), SINGLE, vectors, vectors), vectors, device=device)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 1, 2), (1, 1, 3, 1000), (1, 1, 17, 180)])
def test_other_sizes(device: str, shape: tuple[int, ...]) -> None:
    check(random_arguments(shape), device=device)


@pytest.mark.parametrize("rows", [31, 32, 33, 65, 128, 129])
def test_rows_around_those_of_a_tile_and_of_a_part(device: str, rows: int) -> None:
    check(random_arguments((rows, 1, 1, 60), SINGLE, BRAIN), BRAIN, device=device)  # each row has a factor of its own


@pytest.mark.parametrize("factors", [False, True])
@pytest.mark.parametrize("unused", ["total", "normalised"])
def test_a_result_that_is_not_used(device: str, unused: str, factors: bool) -> None:
    given = random_arguments((2, 3, 5, 60), factors=factors)
    check(given, total=unused != "total", normalised=unused != "normalised", device=device)


def test_a_mean_far_from_zero(device: str) -> None:
    """A variance by the difference of two large sums would be lost."""
    given = random_arguments((2, 3, 5, 60))
    check(replace(given, stream=given.stream + 1000), device=device)


def test_rows_without_variance(device: str) -> None:
    given = replace(random_arguments((2, 3, 5, 60), branch=None), stream=torch.full((2, 3, 5, 60), 3.0))
    made = check(given, total=False, device=device)
    assert torch.equal(made[1], given.bias.detach().expand(2, 3, 5, 60))


def test_a_row_that_is_not_finite_stays_alone(device: str) -> None:
    given, upstream = random_arguments((2, 5, 13, 60)), [torch.randn(2, 5, 13, 60) for _ in range(2)]
    fine = kernels(given, [*upstream], SINGLE, device)[:4]
    given.stream.detach()[1, 2, 3, 4] = float("nan")
    for made, before in zip(kernels(given, [*upstream], SINGLE, device)[:4], fine, strict=True):
        assert made[1, 2, 3].isnan().any()
        made[1, 2, 3] = before[1, 2, 3]
        assert torch.equal(made, before)


@pytest.mark.parametrize("factors", [False, True])
def test_same_input_same_bits(device: str, factors: bool) -> None:
    given = random_arguments((2, 5, 13, 60), SINGLE, BRAIN, factors=factors)
    upstream: list[Tensor | None] = [torch.randn(2, 5, 13, 60), torch.randn(2, 5, 13, 60).bfloat16()]
    first, second = (kernels(given, upstream, BRAIN, device) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))


def test_upstream_gradients_may_lie_anyhow(device: str) -> None:
    given, upstream = random_arguments((2, 3, 5, 60)), [torch.randn(2, 3, 5, 60) for _ in range(2)]
    expected = kernels(given, [*upstream], SINGLE, device)
    made = kernels(given, [one.transpose(1, 3).contiguous().transpose(1, 3) for one in upstream], SINGLE, device)
    assert all(torch.equal(one, other) for one, other in zip(made, expected, strict=True))


# --- what is not stored, read or written ---


@pytest.mark.parametrize("stream", [SINGLE, BRAIN])
@pytest.mark.parametrize("branch", [SINGLE, BRAIN])
@pytest.mark.parametrize("factors", [False, True])
def test_the_branchs_gradient_is_the_streams_where_they_are_equal(
    device: str, stream: torch.dtype, branch: torch.dtype, factors: bool
) -> None:
    given = random_arguments((2, 3, 5, 60), stream, branch, factors=factors).mapped(lambda one: one.to(device))
    for leaf in given.leaves():
        leaf.requires_grad_()
    total, normalised, _ = fused.add_norm_op(*given.tensors(), EPS, SINGLE)
    of_stream, of_branch = torch.autograd.grad(total.sum() + normalised.sum(), given.leaves()[:2])
    assert (of_stream.data_ptr() == of_branch.data_ptr()) == (stream == branch and not factors)


def test_a_total_without_upstream_gradient_is_not_read(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    upstreams: list[tuple[Any, ...]] = []
    launched = fused._gradient_op

    def launch(*given: Any) -> Any:
        upstreams.append(given[:2])
        return launched(*given)

    monkeypatch.setattr(fused, "_gradient_op", launch)
    kernels(random_arguments((2, 3, 5, 60)), [None, torch.randn(2, 3, 5, 60)], SINGLE, device)
    ((of_total, of_normalised),) = upstreams
    assert of_total is None
    assert of_normalised is not None


@pytest.mark.parametrize("shape", [(1, 1, 1, 5), (3, 3, 7, 60), (2, 1, 65, 64)], ids=str)
def test_nothing_is_written_beyond_the_results(
    device: str, shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = random_arguments(shape).mapped(lambda one: one.to(device))
    memories, places = [], []

    def guarded(like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        memories.append(torch.full((like.numel() + 8192,), 77.5, device=device, dtype=dtype or like.dtype))
        places.append(memories[-1][4096:-4096].view(like.shape))
        return places[-1]

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", guarded)
        total, _, statistics = fused.launch(*given.tensors(), EPS, SINGLE)  # type: ignore[call-arg]
        fused.launch_gradient(
            given.stream, given.stream, total, statistics, given.factors, given.weight, SINGLE, SINGLE, SINGLE
        )
    assert len(memories) == 4
    for memory, place in zip(memories, places, strict=True):
        assert (memory[:4096] == 77.5).all()
        assert (memory[-4096:] == 77.5).all()
        assert (place != 77.5).all()


# --- the last stage of the sums ---


@pytest.mark.parametrize("parts", [1, 2, 255, 256, 257, 600])
@pytest.mark.parametrize("columns", [1, 16, 17])
def test_parts_are_added_up(device: str, parts: int, columns: int) -> None:
    partial = torch.randn(3, parts, columns)
    sums = torch.stack([one.cpu() for one in column_sums.add_parts(partial.to(device), [SINGLE] * 3)])
    truth = partial.double().sum(1)
    assert (sums.dtype, sums.shape) == (SINGLE, (3, columns))
    assert (sums - truth).abs().max() <= 2 * (partial.sum(1) - truth).abs().max() + 1e-7 * truth.abs().max()
    (rounded,) = column_sums.add_parts(partial[:1].to(device), [torch.float16])
    assert torch.equal(rounded.cpu(), sums[0].half())


@pytest.mark.parametrize("columns", [1, 7, 60, 180, 1024])
@pytest.mark.parametrize("values", [2048, 4096])
def test_parts_are_whole_tiles(columns: int, values: int) -> None:
    rows, padded = column_sums.tile_of(columns, values, 1024)
    assert columns <= padded < 2 * columns
    assert rows * padded <= values
    assert rows * column_sums.tiles_of(rows) == column_sums.ROWS
    assert [column_sums.parts_of_rows(count) for count in (1, 128, 129, 73728)] == [1, 1, 2, 576]
