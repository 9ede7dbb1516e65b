"""`add_norm` and `bias_gelu` as networks and torch see them: the path by device, registration, nothing read back."""

import ast
import inspect
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from eco_fast_kernels import add_norm, bias_gelu, normalisation
from torch import Tensor
from torch.library import opcheck

from tests.kernels.test_ops import NothingReadBack, nothing_synchronised

pytest.importorskip("triton")

SINGLE, BRAIN = torch.float32, torch.bfloat16


def cases(device: str) -> dict[str, tuple[Any, ...]]:
    """Arguments of every op, by name and what is special about them."""
    stream, branch, upstream = (torch.randn(2, 3, 5, 12, device=device) for _ in range(3))
    vectors = [torch.randn(12, device=device) for _ in range(3)]
    factors, statistics = torch.tensor([0.0, 1.5], device=device), torch.rand(2, 30, device=device)
    return {
        "add_norm factors": (stream, branch, vectors[0], factors, *vectors[1:], 1e-5, SINGLE),
        "add_norm mixed": (stream, branch.to(BRAIN), vectors[0], None, *vectors[1:], 1e-5, BRAIN),
        "add_norm alone": (stream, None, None, None, *vectors[1:], 1e-5, SINGLE),
        "add_norm_gradient factors": (upstream, branch, stream, statistics, factors, vectors[0], SINGLE, SINGLE, BRAIN),
        "add_norm_gradient equal": (None, branch, stream, statistics, None, vectors[0], SINGLE, SINGLE, SINGLE),
        "add_norm_gradient alone": (None, branch, stream, statistics, None, vectors[0], SINGLE, None, None),
        "bias_gelu": (stream, vectors[0]),
        "bias_gelu_gradient": (upstream, stream, vectors[0]),
    }


def differentiable(given: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(
        one.detach().clone().requires_grad_() if isinstance(one, Tensor) and one.ndim != 1 else one for one in given
    )


class NoLaunch:
    """In a kernel's place: what is traced has no values to compute with."""

    def __init__(self, kernel: object) -> None:
        self.kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(size > 0 for size in grid)
        return lambda *_, **__: None


@pytest.mark.parametrize("case", list(cases("cpu")))
def test_opcheck(case: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from eco_fast_kernels.fused import add_norm as norm
    from eco_fast_kernels.fused import bias_gelu as gelu
    from eco_fast_kernels.fused import column_sums

    name, given = case.split(maxsplit=1)[0], cases(device)[case]
    op = getattr(torch.ops.eco_fast, name).default
    if not name.endswith("gradient"):
        given = differentiable(given)
    checks = ["test_schema", "test_autograd_registration"]
    if device == "cuda":
        checks += ["test_faketensor", "test_aot_dispatch_dynamic"]
    assert set(opcheck(op, given, test_utils=checks).values()) == {"SUCCESS"}
    for module in (norm, gelu, column_sums):  # shapes alone: Triton's interpreter cannot be traced
        monkeypatch.setattr(module, "wrap_triton", NoLaunch)
    assert opcheck(op, given, test_utils="test_faketensor") == {"test_faketensor": "SUCCESS"}


def results_of(run: Callable[..., Any], given: tuple[Any, ...]) -> list[Tensor]:
    """Results of an op, and the gradients of its tensors but the factors."""
    given = tuple(one.detach().clone().requires_grad_() if isinstance(one, Tensor) else one for one in given)
    made = run(*given)
    outputs = made if isinstance(made, tuple) else (made,)
    leaves = [one for index, one in enumerate(given) if isinstance(one, Tensor) and (len(given) == 2 or index != 3)]
    total = sum((index + 1) * output.square().sum() for index, output in enumerate(outputs))
    return [*(output.detach() for output in outputs), *torch.autograd.grad(total, leaves)]


@pytest.mark.parametrize("case", ["add_norm factors", "add_norm mixed", "add_norm alone", "bias_gelu"])
def test_both_paths_take_the_same_arguments(case: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CPU tensors run the formulas, to the bit; the other path, in Triton's interpreter, does the same."""
    run, formula = (add_norm, normalisation.add_norm) if "norm" in case else (bias_gelu, normalisation.bias_gelu)
    given = cases("cpu")[case]
    plain = results_of(formula, given)
    assert all(map(torch.equal, results_of(run, given), plain))
    monkeypatch.setattr("eco_fast_kernels.norm_ops._runs_triton", lambda _: True)
    fused = results_of(run, tuple(one.to(device) if isinstance(one, Tensor) else one for one in given))
    tolerance = 1e-2 if "mixed" in case else 1e-5
    for one, other in zip(fused, plain, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one.cpu(), other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_without_a_branch_the_total_is_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    given = cases("cpu")["add_norm alone"]
    assert add_norm(*given)[0] is given[0]
    monkeypatch.setattr("eco_fast_kernels.norm_ops._runs_triton", lambda _: True)
    assert add_norm(*given)[0] is given[0]


@pytest.mark.parametrize("name", ["add_norm", "bias_gelu"])
def test_no_launch_waits_for_the_device(name: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    module = __import__(f"eco_fast_kernels.fused.{name}", fromlist=["launch"])
    from eco_fast_kernels.fused import column_sums

    for wrapping in (module, column_sums):
        monkeypatch.setattr(wrapping, "wrap_triton", lambda kernel: kernel)  # as in the op, where nothing is traced

    for function in (module.launch, module.launch_gradient, column_sums.add_parts):
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not called & {"item", "tolist", "numpy", "cpu", "nonzero", "synchronize", "is_nonzero"}

    def launch() -> None:
        for case, given in arguments.items():
            if case.startswith(name):
                (module.launch_gradient if "gradient" in case else module.launch)(*given)

    arguments = cases(device)
    launch()  # compiles
    with nothing_synchronised() if device == "cuda" else nullcontext(), NothingReadBack():
        launch()


def test_triton_is_imported_for_cuda_tensors_alone() -> None:
    script = """
import sys, torch, eco_fast_kernels as kernels
x, vector = torch.randn(1, 2, 2, 4), torch.ones(4)
kernels.bias_gelu(kernels.add_norm(x, x, vector, None, vector, vector, 1e-5, torch.float32)[1], vector)
print([name for name in sys.modules if name == "triton" or name.startswith("eco_fast_kernels.fused.")])
"""
    assert subprocess.check_output([sys.executable, "-c", script], encoding="utf-8").strip() == "[]"


def test_compiled_code_that_torch_keeps_depends_on_the_kernels_source() -> None:
    """Torch finds the kernels of an op in what it calls by name; a cached graph of other kernels is not taken."""
    script = """
from torch._library.triton import get_triton_kernels_for_op
from eco_fast_kernels.fused import add_norm, bias_gelu
for op in ("add_norm", "add_norm_gradient", "bias_gelu", "bias_gelu_gradient"):
    print(*sorted(kernel.__name__ for kernel in get_triton_kernels_for_op(f"eco_fast::{op}")))
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    found = subprocess.check_output([sys.executable, "-c", script], encoding="utf-8", env=environment)
    assert found.splitlines() == [
        "add_norm_kernel",
        "add_norm_gradient_kernel column_sums_kernel",
        "bias_gelu_kernel",
        "bias_gelu_gradient_kernel column_sums_kernel",
    ]
