"""The kernels of attention in windows against float64: at most twice the error of torch's own attention."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from eco_fast_kernels import attention, attention_registration
from eco_fast_kernels.attention import relative_positions
from eco_fast_kernels.fused import window_attention as forward
from eco_fast_kernels.fused import window_attention_backward as backward
from eco_fast_kernels.fused.window_tiles import TileForm, choose_form
from torch import Tensor
from triton.runtime import interpreter

from eco_fast.models.cpu.window_attention import attend_by_torch
from eco_fast.models.swin_blocks import shift_mask

pytestmark = pytest.mark.usefixtures("poisoned_memory", "_bfloat16_of_a_gpu")

EVERY_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
WHOLE, SPLIT = TileForm(rows=64, warps=4, tensor_cores=True), TileForm(rows=32, warps=4, tensor_cores=True)
EXACT = TileForm(rows=32, warps=8, tensor_cores=False)
Size = tuple[int, int, int]
SIZE = (1, 16, 16)


@pytest.fixture
def _bfloat16_of_a_gpu(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Triton's interpreter cuts bfloat16 off where GPUs round it, and multiplies the bits of matrices as integers."""
    if device != "cpu":
        return
    convert, multiply = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def rounded(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source.name, target.name) != ("fp32", "bf16"):
            return convert(values, source, target, mode)
        return torch.from_numpy(values.copy()).bfloat16().view(torch.uint16).numpy()

    def as_float32(operand: Any) -> Any:
        if operand.dtype.scalar.name != "bf16":
            return operand
        values = torch.from_numpy(operand.data.copy()).view(torch.bfloat16).float().numpy()
        return interpreter.TensorHandle(values, interpreter.tl.float32)

    def multiplied(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        return multiply(self, as_float32(a), as_float32(b), *rest)

    monkeypatch.setattr(interpreter, "_convert_float", rounded)
    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", multiplied)


class Inputs:
    """Random inputs of the op, and the gradient of its output."""

    def __init__(
        self, size: Size = SIZE, heads: int = 2, channels: int = 10, window: int = 8, shift: int = 4,
        dtype: torch.dtype = torch.float32,
    ) -> None:  # fmt: skip
        features = heads * channels
        self.window, self.shift, self.dtype = window, shift, dtype
        self.qkv = torch.randn(*size, 3 * features).to(dtype)
        self.qkv_bias, self.table = torch.randn(3 * features), torch.randn((2 * window - 1) ** 2, heads)
        self.upstream = torch.randn(*size, features).to(dtype)

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        return self.qkv, self.qkv_bias, self.table

    def launched(self, form: TileForm, device: str) -> list[Tensor]:
        """The output and the gradients of all inputs, by the kernels."""
        qkv, qkv_bias, table = (tensor.to(device) for tensor in self.tensors)
        out = forward.launch(qkv, qkv_bias, table, self.window, self.shift, form)
        upstream = self.upstream.to(device)
        gradients = backward.launch(upstream, qkv, qkv_bias, table, self.window, self.shift, form)
        for made, like in zip(gradients, self.tensors, strict=True):
            assert (made.dtype, made.shape, made.is_contiguous()) == (like.dtype, like.shape, True)
        assert (out.dtype, out.shape) == (self.dtype, self.upstream.shape)
        return [made.cpu() for made in (out, *gradients)]

    def by(self, attend: Callable[..., Tensor], dtype: torch.dtype) -> list[Tensor]:
        """The same, by autograd; the parameters have 32 bits at least."""
        of_parameters = torch.promote_types(dtype, torch.float32)
        inputs = [self.qkv.to(dtype), self.qkv_bias.to(of_parameters), self.table.to(of_parameters)]
        for tensor in inputs:
            tensor.requires_grad_()
        out = attend(*inputs, self.window, self.shift)
        return [out.detach(), *torch.autograd.grad(out, inputs, self.upstream.to(dtype))]


def by_torch(qkv: Tensor, qkv_bias: Tensor, table: Tensor, window: int, shift: int) -> Tensor:
    """As SwinIR attends without the op: torch's SDPA with a bias, and a mask of the shifted windows."""
    bias = table[relative_positions(window)].permute(2, 0, 1).contiguous()
    _, height, width, _ = qkv.shape
    mask = shift_mask(height, width, window, shift).to(qkv.dtype) if shift else None
    return attend_by_torch(qkv + qkv_bias.to(qkv.dtype), bias, mask, window, shift)


def check(inputs: Inputs, form: TileForm, device: str) -> None:
    """At most twice as far from float64 as torch's attention: every value of a token, and sums as a whole."""
    exact, plain = inputs.by(attention.window_attention, torch.float64), inputs.by(by_torch, inputs.dtype)
    launched = inputs.launched(form, device)
    errors, allowed = ([made - right for made, right in zip(all_, exact, strict=True)] for all_ in (launched, plain))
    for index in (0, 1):  # the output, the gradient of qkv
        assert errors[index].abs().max() <= 2 * allowed[index].abs().max()
    for error, other in zip(errors, allowed, strict=True):
        assert error.norm() <= 2 * other.norm()


@EVERY_DTYPE
@pytest.mark.parametrize("form", [WHOLE, SPLIT, EXACT], ids=["whole", "split", "exact"])
def test_output_and_gradients(device: str, form: TileForm, dtype: torch.dtype) -> None:
    check(Inputs(dtype=dtype), form, device)


@EVERY_DTYPE
@pytest.mark.parametrize("form", [SPLIT, EXACT], ids=["split", "exact"])
def test_windows_of_16(device: str, form: TileForm, dtype: torch.dtype) -> None:
    check(Inputs((1, 16, 32), 1, 30, 16, 8, dtype), form._replace(rows=64), device)


@pytest.mark.parametrize("channels", [6, 16, 30, 32, 64])
def test_heads_of_any_size(device: str, channels: int) -> None:
    check(Inputs((1, 8, 16), channels=channels, dtype=torch.float16), WHOLE, device)


@pytest.mark.parametrize("size", [(1, 8, 8), (3, 8, 16), (2, 24, 8)], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 4, 7])
def test_sizes_and_shifts(device: str, size: Size, shift: int) -> None:
    check(Inputs(size, heads=1, shift=shift), WHOLE, device)


@pytest.mark.parametrize("form", [WHOLE, EXACT], ids=["whole", "exact"])
@pytest.mark.parametrize("programs", [1, 4, 10])
def test_runs_of_windows(device: str, form: TileForm, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All windows in one program of each head, or runs that they do not fill."""
    for module in (forward, backward):
        monkeypatch.setattr(module, "PROGRAMS", programs)
    monkeypatch.setattr(backward, "SUMMED_PROGRAMS", 2)
    check(Inputs((1, 8, 40)), form, device)


def test_the_rows_of_a_gpus_tile_of_a_window_of_16(device: str) -> None:
    check(Inputs((1, 16, 16), 1, 10, 16, 8), choose_form((8, 0), torch.float16, 16, 16), device)


def test_the_bias_of_keys_has_no_gradient(device: str) -> None:
    inputs = Inputs((1, 8, 16))
    _, _, of_bias, _ = inputs.launched(WHOLE, device)
    of_queries, of_keys, of_values = of_bias.chunk(3)
    assert (of_keys == 0).all()
    assert (of_queries != 0).all()
    torch.testing.assert_close(of_values, inputs.upstream.sum((0, 1, 2)), rtol=1e-5, atol=1e-5)


def test_parameters_of_16_bits(device: str) -> None:
    inputs = Inputs((1, 8, 16), dtype=torch.bfloat16)
    inputs.qkv_bias, inputs.table = inputs.qkv_bias.bfloat16(), inputs.table.bfloat16()
    in_half = inputs.launched(WHOLE, device)
    inputs.qkv_bias, inputs.table = inputs.qkv_bias.float(), inputs.table.float()
    for half, whole in zip(in_half, inputs.launched(WHOLE, device), strict=True):
        assert torch.equal(half, whole.bfloat16())


@EVERY_DTYPE
@pytest.mark.parametrize("form", [WHOLE, SPLIT], ids=["whole", "split"])
def test_same_input_same_bits(device: str, form: TileForm, dtype: torch.dtype) -> None:
    inputs = Inputs((1, 8, 16), dtype=dtype)
    for one, other in zip(inputs.launched(form, device), inputs.launched(form, device), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("form", [WHOLE, SPLIT], ids=["whole", "split"])
@pytest.mark.parametrize("channels", [6, 16])
def test_nothing_is_written_beyond_the_results(
    device: str, form: TileForm, channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    memories: list[Tensor] = []
    inputs, empty_like, new_empty = Inputs((1, 8, 16), channels=channels), torch.empty_like, Tensor.new_empty

    def surrounded(like: Tensor, shape: Any, **options: Any) -> Tensor:
        if "device" in options:  # the interpreter's own
            return new_empty(like, shape, **options)
        memory = torch.full((torch.Size(shape).numel() + 2048,), 77.5, device=device)
        memories.append(memory)
        return memory[1024:-1024].view(shape)

    def surrounded_like(like: Tensor, **options: Any) -> Tensor:
        return empty_like(like, **options) if options else surrounded(like, like.shape)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "empty_like", surrounded_like)
        patch.setattr(Tensor, "new_empty", surrounded)
        inputs.launched(form, device)
    assert len(memories) == 6  # the output, three gradients, sums of programs and of queries
    for memory in memories:
        assert (memory[:1024] == 77.5).all()
        assert (memory[-1024:] == 77.5).all()
    assert all((memory[1024:-1024] != 77.5).all() for memory in memories[:4])


@pytest.mark.filterwarnings(
    "ignore:invalid value encountered:RuntimeWarning", "ignore:All-NaN:RuntimeWarning"
)  # numpy's
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_bad_number_shows_in_its_window_alone(device: str, bad: float) -> None:
    inputs = Inputs((2, 8, 16), shift=0)
    fine = inputs.launched(WHOLE, device)
    inputs.qkv[1, 3, 5, 7] = bad
    out, gradient, _, of_table = inputs.launched(WHOLE, device)
    for made, before in ((out, fine[0]), (gradient, fine[1])):
        assert not made[1, :, :8].isfinite().all()
        assert torch.equal(made[0], before[0])
        assert torch.equal(made[1, :, 8:], before[1, :, 8:])
    assert not of_table.isfinite().all()


# --- what the kernels are compared with, and how they are called ---


@pytest.mark.parametrize(("window", "shift"), [(8, 0), (8, 4), (8, 3), (16, 8)])
def test_the_reference_is_swinirs_attention(window: int, shift: int) -> None:
    inputs = Inputs((2, 2 * window, 3 * window), window=window, shift=shift)
    ours, theirs = (inputs.by(attend, torch.float64) for attend in (attention.window_attention, by_torch))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-11)


def test_the_registered_op_has_the_kernels_results(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = Inputs((1, 8, 16), dtype=torch.float16)
    monkeypatch.setattr(attention_registration, "form_of", lambda *_: WHOLE)
    leaves = [tensor.to(device).requires_grad_() for tensor in inputs.tensors]
    out = torch.ops.eco_fast.attend_windows(*leaves, inputs.window, inputs.shift)
    upstream = inputs.upstream.to(device).transpose(1, 2).contiguous().transpose(1, 2)  # as autograd may hand it on
    made = [out.detach(), *torch.autograd.grad(out, leaves, upstream)]
    for ours, right in zip(made, inputs.launched(WHOLE, device), strict=True):
        assert torch.equal(ours.cpu(), right)


def test_forms() -> None:
    half, whole = torch.float16, torch.float32
    assert choose_form((8, 0), half, 32, 8) == choose_form((12, 0), torch.bfloat16, 16, 8) == WHOLE
    assert choose_form((9, 0), half, 64, 8) == SPLIT
    assert choose_form((9, 0), half, 32, 16).rows == 16
    assert choose_form((7, 5), half, 16, 8) == choose_form((9, 0), whole, 16, 8) == EXACT
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    assert choose_form((9, 0), whole, 16, 8) == WHOLE
    assert choose_form((7, 5), whole, 16, 8) == EXACT
    torch.backends.cuda.matmul.allow_tf32 = before


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((9, 0), torch.float32)])
def test_wide_heads_need_tensor_cores(capability: tuple[int, int], dtype: torch.dtype) -> None:
    for window, widest in ((16, 16), (8, 32)):
        assert choose_form(capability, dtype, widest, window).rows == 16
        with pytest.raises(
            ValueError, match=f"more than {widest} channels a head need tensor cores: .*; got torch.float"
        ):
            choose_form(capability, dtype, 2 * widest, window)
