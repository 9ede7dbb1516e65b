"""Whether convolutions take a ReLU along: what counts as right, and that compiled code may ask."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional

from eco_fast.models import convolutions
from eco_fast.models.convolutions import convolution_fuses_relu, fault_of

CPU = torch.device("cpu")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


def usual(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.conv2d(x, weight, bias, padding=1).relu()


def spoiled(place: tuple[int, ...], value: float) -> Callable[..., Tensor]:
    def convolution(*operands: Tensor) -> Tensor:
        made = usual(*operands)
        made[place] = value
        return made

    return convolution


def refusing(*_: Tensor) -> Tensor:
    raise RuntimeError("CUDNN_STATUS_NOT_SUPPORTED\nand much more")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_what_is_right(dtype: torch.dtype) -> None:
    assert fault_of(usual, CPU, dtype) is None
    assert fault_of(lambda x, *rest: usual(x.contiguous(), *rest), CPU, dtype) is None
    # The bias added to the rounded product, as other libraries may do it: two roundings instead of one.
    rounded = lambda x, weight, bias: (functional.conv2d(x, weight, padding=1) + bias[:, None, None]).relu()  # noqa: E731
    assert fault_of(rounded, CPU, dtype) is None


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "wrong",
    [
        functional.conv2d,
        lambda x, weight, bias: functional.conv2d(x, weight, bias, padding=1),
        lambda x, weight, _: functional.conv2d(x, weight, padding=1).relu(),
        lambda x, weight, bias: functional.conv2d(x, weight, padding=1).relu() + bias[:, None, None],
        lambda x, weight, bias: usual(x, weight.transpose(0, 1), bias),
        lambda x, weight, bias: usual(x, weight.flip(2), bias),
        lambda x, weight, bias: usual(x, weight, bias).flip(0),
        spoiled((1, 63, 8, 10), float("nan")),
        spoiled((0, 0, 0, 0), float("inf")),
        spoiled((1, 5), 0.0),
        refusing,
    ],
)
def test_what_is_wrong(wrong: Callable[..., Tensor], dtype: torch.dtype) -> None:
    fault = fault_of(wrong, CPU, dtype)
    assert fault is not None
    assert "\n" not in fault


def test_the_fault_names_the_error() -> None:
    assert fault_of(refusing, CPU, torch.bfloat16) == "CUDNN_STATUS_NOT_SUPPORTED"
    assert fault_of(spoiled((0, 0, 0, 0), float("nan")), CPU, torch.float16) == "its result is wrong by nan"


def test_autocast_does_not_reach_it() -> None:
    seen = []

    def keep(*operands: Tensor) -> Tensor:
        seen.append(usual(*operands).dtype)
        return usual(*operands)

    with torch.autocast("cpu", torch.bfloat16):
        assert fault_of(keep, CPU, torch.float32) is None
    assert seen == [torch.float32]


def test_compiled_code_may_ask(capsys: pytest.CaptureFixture[str]) -> None:
    torch.compiler.reset()

    def answer(x: Tensor) -> Tensor:
        return x + 1 if convolution_fuses_relu(x.device, x.dtype) else x - 1

    x = torch.zeros(3)
    assert torch.equal(torch.compile(answer, fullgraph=True, backend="eager")(x), x - 1)
    assert capsys.readouterr().out == ""  # a CPU is no GPU that lacks it


def test_a_network_that_is_traced_gets_the_answer_of_real_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question comes from inside torch.compile, where tensors have no values."""
    monkeypatch.setattr(convolutions, "cudnn_convolution_relu", usual)
    convolutions._works.cache_clear()
    with FakeTensorMode():
        assert convolutions._works(CPU, torch.float32)
    convolutions._works.cache_clear()
