"""The ops as torch sees them: registration, tracing, gradients, and that nothing waits for the device."""

import ast
import inspect
import textwrap
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from eco_fast_kernels import (
    LambOptions,
    StepRules,
    StepState,
    attention,
    blended_loss,
    cut_crops,
    decide_step,
    decision,
    downsample,
    downsample_blend,
    downsampling,
    empty_crops,
    imresize,
    reference,
    registration,
    window_attention,
)
from eco_fast_kernels.crops import aligned_start, row_bytes, with_same_layout
from eco_fast_kernels.downsampling import ROUNDINGS, STENCILS
from eco_fast_kernels.reference import LOSS_KINDS
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.library import opcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HALF = torch.tensor(0.5)
DTYPES = (torch.float16, torch.bfloat16, torch.float32)


def random_bytes(*shape: int) -> Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8)


# --- registration ---


def cases() -> dict[str, tuple[Any, ...]]:
    """Arguments of every registered op, by name and what is special about them."""
    hr, sr, flags = random_bytes(2, 12, 12, 3), random_bytes(2, 12, 12, 3), torch.tensor([True, False])
    prediction = torch.rand(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    half = torch.rand(2, 3, 12, 12, dtype=torch.bfloat16, requires_grad=True)
    one = torch.rand(1, 3, 1, 1, requires_grad=True)
    pixels, plan = random_bytes(1000), torch.tensor([[7, 30, 8, 9, -2, 3, 6], [300, 50, 4, 16, 1, 5, 1]])
    scale = torch.tensor(16.0)
    return {
        "cut_crops two": (pixels, plan, 10, 3),
        "cut_crops one": (pixels, plan[1:], 1, 0),
        "downsample oblong": (random_bytes(2, 12, 14, 3), 2, "uint8", None),
        "downsample transposed": (hr, 2, "im2double", flags),
        "downsample_blend both": (hr, sr, HALF, 2, "uint8", None, torch.float32),
        "downsample_blend one": (None, sr, torch.rand(2), 2, "uint8", flags, torch.bfloat16),
        "blended_loss margin": (prediction, hr, sr, HALF, "l2", 2, scale),
        "blended_loss contiguous": (half, hr, None, torch.rand(2), "l1", 0, None),
        "blended_loss pixel": (one, random_bytes(1, 1, 1, 3), random_bytes(1, 1, 1, 3), HALF, "charbonnier", 0, None),
    }


CASES = tuple(cases())


def tensors_in(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("case", CASES)
def test_opcheck(case: str) -> None:
    results = opcheck(getattr(torch.ops.eco_fast, case.split(maxsplit=1)[0]).default, cases()[case])
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("case", CASES)
def test_the_path_of_a_gpu_takes_the_same_arguments(case: str) -> None:
    """The registered CUDA functions, run in Triton's interpreter, do what the CPU's do, in place too."""
    pytest.importorskip("triton")
    if torch.cuda.is_available():
        pytest.skip("with a GPU the kernels are not interpreted; the tests of the kernels run on it")
    torch.manual_seed(1)
    plain = cases()[case]
    torch.manual_seed(1)
    fused = cases()[case]
    op = getattr(registration, f"_{case.split(maxsplit=1)[0]}")
    with torch.no_grad():
        of_plain, of_fused = (op._backend_fns[device](*given) for device, given in (("cpu", plain), ("cuda", fused)))
    assert (of_plain is None) == (of_fused is None)
    # A whole unit in the last place: Triton's interpreter does not round to bfloat16, it cuts off.
    for one, other in zip(tensors_in((of_plain, plain)), tensors_in((of_fused, fused)), strict=True):
        rtol = torch.finfo(one.dtype).eps if one.dtype == torch.bfloat16 else 1e-6
        torch.testing.assert_close(other, one, rtol=rtol, atol=1e-6)


# --- tracing and gradients ---


class Step(torch.nn.Module):
    """A training step's network and loss, x2."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self.conv = torch.nn.Conv2d(3, 12, 3, padding=1, dtype=dtype)

    def forward(self, hr: Tensor, sr: Tensor, alpha: Tensor, gradient_scale: Tensor) -> tuple[Tensor, Tensor]:
        lr = downsample_blend(hr, sr, alpha, 2, transposed=torch.tensor([True, False]), dtype=self.dtype)
        made = torch.nn.functional.pixel_shuffle(self.conv(lr), 2)
        return blended_loss(made, hr, sr, 1 - alpha, "l2", margin=4, gradient_scale=gradient_scale)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_compiled_step_equals_the_eager_one_to_the_bit(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opaque to the compiler, as the ops are for CUDA tensors."""
    monkeypatch.setattr("eco_fast_kernels.ops._fused_by_the_compiler", lambda _: False)
    torch.compiler.reset()
    step, counter = Step(dtype), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(step, fullgraph=True, backend=counter)
    hr, sr = (empty_crops(2, 20, 4).copy_(random_bytes(2, 20, 20, 3)) for _ in range(2))
    for alpha in (torch.tensor(0.25), torch.tensor(0.75)):
        results = []
        for run in (step, compiled):
            step.zero_grad()
            loss, finite = run(hr, sr, alpha, torch.tensor(8.0))
            (3 * loss).backward()
            assert step.conv.weight.grad is not None
            assert step.conv.bias is not None
            assert step.conv.bias.grad is not None
            results.append([loss.detach(), finite, step.conv.weight.grad.clone(), step.conv.bias.grad.clone()])
        assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))
        assert results[0][0] > 0
        assert results[0][1]
    assert counter.frame_count == 1  # a new weight is no new graph
    with pytest.raises(ValueError, match="alpha is a weight"):
        compiled(hr, sr, torch.tensor(1.5), torch.tensor(8.0))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 2**-7)], ids=str)
def test_a_compiler_that_sees_through_the_ops_changes_rounding_alone(dtype: torch.dtype, tolerance: float) -> None:
    """As they are for CPU tensors: no op is left in the graph, and the input is the same to the bit."""
    torch.compiler.reset()
    graphs: list[Any] = []
    step = Step(dtype)

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(step, fullgraph=True, backend=keep)
    hr, sr = (empty_crops(2, 20, 4).copy_(random_bytes(2, 20, 20, 3)) for _ in range(2))
    results = []
    for run in (step, compiled):
        step.zero_grad()
        loss, finite = run(hr, sr, torch.tensor(0.25), torch.tensor(8.0))
        (3 * loss).backward()
        assert step.conv.weight.grad is not None
        results.append((loss.detach(), finite, step.conv.weight.grad.clone()))
    (loss, finite, gradient), (other_loss, other_finite, other_gradient) = results
    assert torch.equal(loss, other_loss)
    assert torch.equal(finite, other_finite)
    assert (gradient - other_gradient).norm() <= tolerance * gradient.norm()
    assert len(graphs) == 1
    assert "eco_fast" not in graphs[0].code


def test_the_compiler_sees_through_attention_of_cpu_tensors() -> None:
    def step(qkv: Tensor, qkv_bias: Tensor, table: Tensor) -> Tensor:
        return window_attention(qkv, qkv_bias, table, 8, 4)

    torch.compiler.reset()
    qkv, qkv_bias, table = (torch.rand(shape, requires_grad=True) for shape in ((1, 8, 16, 60), (60,), (225, 2)))
    results = []
    for run in (step, torch.compile(step, fullgraph=True, backend="aot_eager")):
        out = run(qkv, qkv_bias, table)
        results.append([out, *torch.autograd.grad(out.square().sum(), (qkv, qkv_bias, table))])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", LOSS_KINDS)
@pytest.mark.parametrize("gradient_scale", [None, torch.tensor(1.0), torch.tensor(1024.0)], ids=str)
@pytest.mark.parametrize("upstream", [1.0, 0.25, 1024.0])
def test_gradients_of_any_upstream_factor(kind: Any, gradient_scale: Tensor | None, upstream: float) -> None:
    hr, sr = random_bytes(2, 5, 7, 3), random_bytes(2, 5, 7, 3)
    prediction = torch.rand(2, 3, 5, 7, requires_grad=True)
    loss, finite = blended_loss(prediction, hr, sr, HALF, kind, gradient_scale=gradient_scale)
    expected = reference.blended_loss(prediction, hr, sr, HALF, kind)
    assert torch.equal(loss, expected)
    assert bool(finite)
    assert not finite.requires_grad
    (true,) = torch.autograd.grad(upstream * expected, prediction)
    for _ in range(2):
        (made,) = torch.autograd.grad(upstream * loss, prediction, retain_graph=True)
        torch.testing.assert_close(made, true, rtol=1e-6, atol=1e-7 * float(true.abs().max()))
    total = loss * upstream
    total.backward(retain_graph=True)
    total.backward()
    assert prediction.grad is not None
    assert torch.equal(prediction.grad, 2 * made)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_have_the_predictions_dtype_and_shape(dtype: torch.dtype) -> None:
    prediction = torch.rand(2, 3, 4, 5).to(dtype).requires_grad_()
    loss, _ = blended_loss(prediction, random_bytes(2, 4, 5, 3), None, HALF)
    loss.backward()
    assert prediction.grad is not None
    assert (prediction.grad.dtype, prediction.grad.shape) == (dtype, prediction.shape)


def test_a_loss_that_is_not_finite_says_so() -> None:
    prediction = torch.full((1, 3, 2, 2), float("nan"))
    _, finite = blended_loss(prediction, random_bytes(1, 2, 2, 3), None, HALF)
    assert not finite


@pytest.mark.parametrize("rounding", ROUNDINGS)
@pytest.mark.parametrize("scale", sorted(STENCILS))
def test_cpu_tensors_run_the_reference(scale: int, rounding: Any) -> None:
    images, flags = random_bytes(2, 5 * scale, 5 * scale, 3), torch.tensor([True, False])
    assert torch.equal(
        downsample(images, scale, rounding, flags), downsampling.downsample(images, scale, rounding, flags)
    )
    assert torch.equal(imresize(images, scale, rounding), downsampling.imresize(images, scale, rounding))
    blend = reference.downsample_blend(images, images.flip(0), HALF, scale, rounding, transposed=flags)
    assert torch.equal(
        downsample_blend(images, images.flip(0), HALF, scale, rounding, transposed=flags, dtype=torch.float16),
        blend.half(),
    )
    plan = torch.tensor([[7, 30, 8, 9, -2, 3, 6]])
    assert torch.equal(cut_crops(images.flatten(), plan, 10, 3), reference.cut_crops(images.flatten(), plan, 10, 3))
    attended = (torch.rand(1, 8, 16, 60), torch.rand(60), torch.rand(225, 2), 8, 4)
    assert torch.equal(window_attention(*attended), attention.window_attention(*attended))
    states = [StepState.at_start("cpu", 3, scale=4.0) for _ in range(2)]
    ours = decide_step(torch.ones(5), torch.tensor(3.0), states[0], StepRules(scales=True))
    plain = decision.decide_step(torch.ones(5), torch.tensor(3.0), states[1], StepRules(scales=True))
    for one, other in zip((*ours, *states[0]), (*plain, *states[1]), strict=True):
        assert torch.equal(one, other)


# --- nothing is read back to the host ---


class NothingReadBack(TorchDispatchMode):
    """Refuses the operators that make a value known to the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = str(func)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "item", "masked_select", "unique", "equal")):
            raise AssertionError(f"{name} waits for the device")
        return func(*args, **(kwargs or {}))


def test_the_mode_notices() -> None:
    for reading in (Tensor.item, bool, int, float, Tensor.nonzero):
        with NothingReadBack(), pytest.raises(AssertionError, match="waits for the device"):
            reading(torch.ones(()))


LAUNCHING = ("cut_crops", "downsample_blend", "blended_loss", "decide_step", "lamb_step")


@pytest.mark.parametrize("name", [*LAUNCHING, "window_attention", "window_attention_backward"])
def test_no_launch_waits_for_the_device(name: str, device: str) -> None:
    module = __import__(f"eco_fast_kernels.fused.{name}", fromlist=["launch"])
    launching = module.LambPlan.step if name == "lamb_step" else module.launch
    for function in (launching, with_same_layout, aligned_start, row_bytes):
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
        called = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert not called & {"item", "tolist", "numpy", "cpu", "nonzero", "synchronize", "is_nonzero"}

    hr, sr = random_bytes(2, 12, 12, 3).to(device), random_bytes(2, 12, 12, 3).to(device)
    alpha, one = torch.tensor([0.3, 0.6], device=device), torch.tensor(1.0, device=device)
    flags, skip = (torch.tensor(value, device=device) for value in ([True, False], False))
    prediction = torch.rand(2, 3, 8, 8, device=device).contiguous(memory_format=torch.channels_last)
    state, (p, g, m, v) = StepState.at_start(device, 3), ([torch.rand(5, device=device)] for _ in range(4))
    plan: Any = module.LambPlan(p, g, m, v, [], LambOptions(clip_value=0.1)) if name == "lamb_step" else None

    cuts = torch.tensor([[7, 30, 8, 9, -2, 3, 6]], device=device)
    qkv, attended, table = (torch.rand(shape, device=device) for shape in ((1, 8, 8, 18), (1, 8, 8, 6), (225, 1)))

    def launch() -> None:
        if name == "cut_crops":
            module.launch(hr.flatten(), cuts, 10, 3)
        elif name == "downsample_blend":
            module.launch(hr, sr, alpha, 2, "uint8", flags, torch.float32)
            module.launch(hr, sr[:1].expand(2, 12, 12, 3).contiguous(), alpha, 2, "uint8", None, torch.uint8)
        elif name == "blended_loss":
            module.launch(prediction, hr, sr, alpha, "l1", 2, one)
        elif name.startswith("window_attention"):
            form = module.TileForm(rows=64, warps=4, tensor_cores=True)
            module.launch(*[attended] * name.endswith("backward"), qkv, qkv[0, 0, 0], table, 8, 4, form)
        elif name == "decide_step":
            module.launch(g[0], one, state, StepRules(5.0, scales=True))
        else:
            plan.step(one, skip, one)

    launch()  # compiles, and makes what is made once
    with nothing_synchronised() if device == "cuda" else nullcontext(), NothingReadBack():
        launch()


@contextmanager
def nothing_synchronised() -> Iterator[None]:
    """Refuse what waits for the GPU; the mode warns that it is a prototype, and must not outlive the block."""
    before = torch.cuda.get_sync_debug_mode()
    try:
        with warnings.catch_warnings(action="ignore"):
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        with warnings.catch_warnings(action="ignore"):
            torch.cuda.set_sync_debug_mode(before)
