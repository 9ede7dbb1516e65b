"""The ops of residual networks as the program and torch see them: refusals, registration, tracing."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from eco_fast_kernels import (
    ChannelGradients,
    ChannelState,
    ChannelWeights,
    add_residual,
    attend_channels,
    attention_gradient,
    attention_sums,
    bias_relu,
    channel_attention,
    channel_sums,
    column_sums,
    epilogues,
    merge_gradients,
    network_ops,
    relu_gradient,
)
from functorch.compile import make_boxed_func  # type: ignore[import-untyped]
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.library import opcheck

from tests.kernels.network_cases import random_images
from tests.kernels.test_ops import NothingReadBack

SIZE, SQUEEZED = (2, 6, 9, 16), 3  # two parts
Calls = dict[str, Callable[[], Any]]


def filled(made: Sequence[Tensor], given: Tensor) -> list[Tensor]:
    """The argument where a formula leaves its result empty."""
    return [one if one.numel() else given for one in made]


def calls(
    module: Any = network_ops, attention: Any = network_ops, move: Callable[[Tensor], Tensor] = lambda one: one
) -> Calls:
    """Every op in every form, by name; what they change is made anew, and all are moved to a device."""
    torch.manual_seed(2)
    x, y, z = (move(random_images(SIZE)) for _ in range(3))
    bias, factors = move(torch.randn(SIZE[1])), move(torch.rand(SIZE[0]))
    shapes = (6,), (SQUEEZED, 6, 1, 1), (SQUEEZED,), (6, SQUEEZED, 1, 1), (6,)
    weights = ChannelWeights(*(move(torch.randn(shape)) for shape in shapes))
    sums, state = column_sums(x, 2).fill_(0.0), ChannelState.empty(x, 2, SQUEEZED)
    gradients = ChannelGradients.empty(state)
    for one in (*state, *gradients):
        one.fill_(0.5)
    fp16, fp32 = torch.float16, torch.float32
    return {
        "bias_relu": lambda: module.bias_relu(x, bias),
        "add_residual": lambda: module.add_residual(y, x, bias),
        "add_residual scaled": lambda: module.add_residual(y.half(), x, bias, 0.1, factors),
        "relu_gradient": lambda: (module.relu_gradient(y, x, sums, 1), sums),
        "merge_gradients first": lambda: (
            filled(module.merge_gradients(y, None, 1.0, None, fp32, sums, 0), y),
            sums,
        ),
        "merge_gradients both": lambda: (module.merge_gradients(y, z, 1.0, None, fp16, sums, 0), sums),
        "merge_gradients scaled": lambda: (module.merge_gradients(y, z, 0.1, factors, fp32, sums, 0), sums),
        "channel_sums": lambda: (attention.channel_sums(x, state, 0), state.sums),
        "attend_channels": lambda: (attention.attend_channels(x, y.half(), weights, state, 1), *state),
        "attention_sums first": lambda: (
            filled([attention.attention_sums(y, None, x, gradients, 0)], y),
            gradients.sums,
        ),
        "attention_sums both": lambda: (attention.attention_sums(y, z, x, gradients, 1), gradients.sums),
        "attention_gradient": lambda: (attention.attention_gradient(y, weights, state, gradients, 1), *gradients),
    }


NAMES = tuple(calls())


def tensors_of(result: Any) -> list[Tensor]:
    return [one for one in torch.utils._pytree.tree_leaves(result) if isinstance(one, Tensor)]


def looks(result: Any) -> list[Any]:
    """Shapes, strides and dtypes, as JSON has them; an axis of one element has any stride."""
    return [[list(one.shape), list(one.stride()), str(one.dtype)] for one in tensors_of(result)]


# --- which path, and what torch knows of it ---


@pytest.mark.parametrize("name", NAMES)
def test_cpu_tensors_run_the_formulas(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_ops, "_registered", lambda: pytest.fail("that is for GPUs"))
    made, expected = calls()[name](), calls(epilogues, channel_attention)[name]()
    assert looks(made) == looks(expected)
    assert all(torch.equal(one, other) for one, other in zip(tensors_of(made), tensors_of(expected), strict=True))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, tuple[Any, ...]]]:
    """Makes the public functions take the path of GPUs for every tensor; keeps the registered ops that they call."""
    pytest.importorskip("triton")
    kept: list[tuple[Any, tuple[Any, ...]]] = []
    ops = network_ops._registered()

    class Keeping:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            def call(*given: Any) -> Any:
                kept.append((getattr(ops, name).default, given))
                return getattr(ops, name)(*given)

            return call

    monkeypatch.setattr(network_ops, "_registered", Keeping)
    monkeypatch.setattr(Tensor, "is_cuda", True)
    return kept


@pytest.mark.parametrize("name", NAMES)
def test_the_path_of_a_gpu_takes_the_same_arguments(
    name: str, device: str, registered: list[tuple[Any, tuple[Any, ...]]]
) -> None:
    """And torch's own check of what is registered finds nothing, in Triton's interpreter what that can do."""
    expected, made = calls(epilogues, channel_attention)[name](), calls(move=lambda one: one.to(device))[name]()
    for one, other in zip(tensors_of(made), tensors_of(expected), strict=True):
        tolerance = 2**-10 if other.dtype == torch.float16 else 1e-5
        torch.testing.assert_close(one.cpu(), other, rtol=tolerance, atol=tolerance)
    ((op, given),) = registered
    interpreted = ("test_schema", "test_autograd_registration")
    results = opcheck(op, given, test_utils=interpreted) if device == "cpu" else opcheck(op, given)
    assert set(results.values()) == {"SUCCESS"}


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_back(name: str, device: str, registered: list[tuple[Any, tuple[Any, ...]]]) -> None:
    work = calls(move=lambda one: one.to(device))[name]
    with NothingReadBack():
        work()
    assert len(registered) == 1


@pytest.mark.slow
def test_traced_shapes_are_those_of_the_formulas() -> None:
    """Of CUDA tensors without memory, in a process without Triton's interpreter, which cannot be traced."""
    pytest.importorskip("triton")
    script = (
        "import json, torch\n"
        "from torch._subclasses.fake_tensor import FakeTensorMode\n"
        "from tests.kernels import test_network_ops as tests\n"
        "with FakeTensorMode():\n"
        "    works = tests.calls(move=lambda one: torch.empty_like(one, device='cuda'))\n"
        "    print(json.dumps({name: tests.looks(work()) for name, work in works.items()}))\n"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {name: looks(work()) for name, work in calls().items()}


class Rectified(torch.autograd.Function):
    """A hand-written backward pass, as networks have them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor) -> Tensor:
        out = bias_relu(x, bias)
        ctx.save_for_backward(out)
        return out

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, Tensor]:
        sums = column_sums(upstream, 1)
        of_x = relu_gradient(upstream, ctx.saved_tensors[0], sums, 0)
        return of_x, sums[0].sum(0)


def test_a_traced_backward_pass_copies_no_gradient() -> None:
    """As the compiler does where a backward pass asks for strides, and to another layout at that."""
    graphs = []

    def keep(graph: Any, _: Any) -> Any:
        graphs.append(graph.code)
        return make_boxed_func(graph)

    torch.compiler.reset()
    compiled = torch.compile(Rectified.apply, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep))
    x, bias = random_images(SIZE).requires_grad_(), torch.randn(SIZE[1], requires_grad=True)
    upstream = random_images(SIZE)
    made = torch.autograd.grad(compiled(x, bias), (x, bias), upstream)
    true = torch.autograd.grad((x + bias.view(-1, 1, 1)).relu(), (x, bias), upstream)
    assert torch.equal(made[0], true[0])
    torch.testing.assert_close(made[1], true[1])
    assert len(graphs) == 2
    assert "tangents_1" in graphs[1]
    assert "clone.default(tangents_1" not in graphs[1]


# --- refusals ---

IMAGES, BIAS = torch.zeros(2, 6, 9, 16), torch.zeros(6)
WEIGHTS = ChannelWeights(BIAS, torch.zeros(3, 6), torch.zeros(3), torch.zeros(6, 3), BIAS)
SUMS = column_sums(IMAGES, 2)
STATE = ChannelState.empty(IMAGES, 2, 3)
GRADIENTS = ChannelGradients.empty(STATE)


def attend(index: int = 0, residual: Tensor = IMAGES, **fields: Tensor) -> object:
    weights = WEIGHTS._replace(**{name: one for name, one in fields.items() if name in WEIGHTS._fields})
    state = STATE._replace(**{name: one for name, one in fields.items() if name in STATE._fields})
    return attend_channels(IMAGES, residual, weights, state, index)


def differentiate(index: int = 0, **fields: Tensor) -> object:
    return attention_gradient(IMAGES, WEIGHTS, STATE, GRADIENTS._replace(**fields), index)


REFUSED: dict[str, tuple[Callable[[], object], str]] = {
    "image axes": (lambda: bias_relu(IMAGES[0], BIAS), r"bias_relu: x must be .N, C, H, W., got \(6, 9, 16\)"),
    "image dtype": (lambda: bias_relu(IMAGES.int(), BIAS), "x must be float16, .* also float64; got torch.int32"),
    "bias dtype": (lambda: bias_relu(IMAGES, BIAS.int()), "the bias must be float16, .* got torch.int32"),
    "bias size": (lambda: bias_relu(IMAGES, BIAS[:5]), r"the bias must be \[6\], got \[5\]"),
    "bias device": (lambda: bias_relu(IMAGES, BIAS.to("meta")), "the bias is on meta, the rest on cpu"),
    "residual size": (
        lambda: add_residual(IMAGES, IMAGES[:1], BIAS),
        r"x must be as large as residual, \(2, 6, 9, 16\), got \(1, 6, 9, 16\)",
    ),
    "residual device": (lambda: add_residual(IMAGES, IMAGES.to("meta"), BIAS), "x is on meta, the rest on cpu"),
    "factors": (lambda: add_residual(IMAGES, IMAGES, BIAS, 1.0, BIAS), r"factors must be \[2\], got \[6\]"),
    "activation": (lambda: relu_gradient(IMAGES, IMAGES[:, :5], SUMS, 0), "activation must be as large as upstream"),
    "second": (lambda: merge_gradients(IMAGES, IMAGES[0], 1.0, None, torch.float32, SUMS, 0), "second must be as"),
    "sums dtype": (
        lambda: relu_gradient(IMAGES, IMAGES, SUMS.double(), 0),
        r"contiguous torch.float32 \[blocks, 4, 6\], got torch.float64 \[2, 4, 6\] with strides \(24, 6, 1\)",
    ),
    "sums size": (lambda: relu_gradient(IMAGES, IMAGES, SUMS[:, :3], 0), r"\[blocks, 4, 6\], got .* \[2, 3, 6\]"),
    "sums strides": (
        lambda: relu_gradient(IMAGES, IMAGES, SUMS.mT.contiguous().mT, 0),
        r"must be contiguous .* strides \(24, 1, 4\)",
    ),
    "sums device": (lambda: relu_gradient(IMAGES, IMAGES, SUMS.to("meta"), 0), "the chain's values is on meta"),
    "index above": (lambda: relu_gradient(IMAGES, IMAGES, SUMS, 2), "within the chain of 2, got 2"),
    "index below": (lambda: merge_gradients(IMAGES, None, 1.0, None, torch.float32, SUMS, -1), "chain of 2, got -1"),
    "state sums": (lambda: channel_sums(IMAGES[:1], STATE, 0), r"\[blocks, 1, 2, 6\], got .* \[2, 2, 2, 6\]"),
    "attended residual": (lambda: attend(residual=IMAGES[:1]), "residual must be as large as x"),
    "attended index": (lambda: attend(2), "attend_channels: the index must be within the chain of 2, got 2"),
    "down": (lambda: attend(down=torch.zeros(3, 5)), r"down must be \[3, 6\], got \[3, 5\]"),
    "down kernel": (lambda: attend(down=torch.zeros(3, 6, 3, 3)), r"down must be \[3, 6, 1, 1\], got \[3, 6, 3, 3\]"),
    "down bias": (lambda: attend(down_bias=BIAS), r"down_bias must be \[3\], got \[6\]"),
    "up": (lambda: attend(up=torch.zeros(3, 6)), r"up must be \[6, 3\], got \[3, 6\]"),
    "up bias": (lambda: attend(up_bias=torch.zeros(3)), r"up_bias must be \[6\], got \[3\]"),
    "means": (lambda: attend(means=STATE.hidden), r"\[blocks, 2, 6\], got torch.float32 \[2, 2, 3\]"),
    "hidden": (lambda: attend(hidden=STATE.means), r"\[blocks, 2, 3\], got torch.float32 \[2, 2, 6\]"),
    "added images": (
        lambda: attention_sums(IMAGES, None, IMAGES[:1], GRADIENTS, 0),
        "x must be as large as first",
    ),
    "added sums": (
        lambda: attention_sums(IMAGES, None, IMAGES, GRADIENTS._replace(sums=STATE.sums), 0),
        r"\[blocks, 2, 2, 2, 6\], got .* \[2, 2, 2, 6\]",
    ),
    "gradients' sums": (lambda: differentiate(sums=STATE.sums), r"\[blocks, 2, 2, 2, 6\]"),
    "gradients' hidden": (lambda: differentiate(of_hidden=STATE.means), r"\[blocks, 2, 3\], got .* \[2, 2, 6\]"),
    "gradients' index": (
        lambda: differentiate(3),
        "attention_gradient: the index must be within the chain of 2, got 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        call()


def test_float64_is_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    bias_relu(IMAGES.double(), BIAS)
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "is_cuda", True)
        with pytest.raises(ValueError, match=r"got torch\.float64"):
            bias_relu(IMAGES.double(), BIAS)
        with pytest.raises(ValueError, match=r"the branch's gradient must be .* got torch\.float64"):
            merge_gradients(IMAGES, None, 1.0, None, torch.float64, SUMS, 0)


def test_what_the_refusals_are_compared_with_is_taken() -> None:
    attend(1)
    attend(down=torch.zeros(3, 6, 1, 1), up=torch.zeros(6, 3, 1, 1))
    differentiate(1)
