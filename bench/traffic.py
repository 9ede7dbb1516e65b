"""Count launches and bytes of our kernels' work: around the network, inside it, and the optimizers'.

    python -m bench.traffic        needs no GPU

The first table compares the eager, the compiled and the fused form of the same work. One rule counts them all: a launch
reads each address that it needs once, and writes each address of its results once.

eager      a launch is every torch operator that is not a view; it reads its arguments
compiled   the kernels that torch.compile generates, and the bytes that its scheduler counts for them by the same rule
           (on the CPU: its fusion decides by the same rules there)
fused      our kernels, and the addresses that they touch in Triton's interpreter

The second table has our kernels alone, in bytes per value:

compulsory  each array of the contract once, whatever the implementation (`bench.compulsory`)
requested   every access of every thread, counted in the interpreter: what the caches have to serve
"""

import os

if __name__ == "__main__":
    os.environ["TRITON_INTERPRET"] = "1"  # before Triton is imported

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from eco_fast_kernels import (
    STENCILS,
    LambOptions,
    StepRules,
    StepState,
    attention,
    crop_side,
    decision,
    empty_crops,
    margin_of,
    normalisation,
    reference,
)
from eco_fast_kernels.fused import (
    add_norm,
    bias_gelu,
    blended_loss,
    cut_crops,
    decide_step,
    downsample_blend,
    window_attention,
    window_attention_backward,
)
from eco_fast_kernels.fused.lamb_step import LambPlan
from eco_fast_kernels.fused.muon_step import MuonPlan
from eco_fast_kernels.fused.window_tiles import choose_form
from eco_fast_kernels.muon import Matrices, MuonOptions, MuonTensors
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench import compulsory, epilogue_traffic
from bench.counting import Counts, Work, count_compiled, count_eager, count_fused, requested_bytes
from bench.plain import lamb_parameters, lamb_per_tensor

SAMPLES, PATCH, SCALE = 2, 12, 2  # of the first table: the interpreter is slow; the ratios hardly depend on the size
RECIPES_PATCH = 48  # of the second
GROUP = slice(2, 164)  # the first of RCAN's ten residual groups in its list of parameters
ALPHA, ONE = torch.tensor(0.3), torch.tensor(1.0)


class PerValue(NamedTuple):
    """Bytes per value that an op's contract and its kernels ask for."""

    compulsory: float
    requested: float


def random_crops(samples: int, scale: int, patch: int) -> Tensor:
    """As the loader hands them over: uint8 [samples, side, side, 3]."""
    return empty_crops(samples, crop_side(scale, patch), margin_of(scale)).random_(0, 256)


def random_prediction(samples: int, scale: int, patch: int) -> Tensor:
    """Bfloat16 [samples, 3, scale * patch, scale * patch], channels_last."""
    prediction = torch.rand(samples, 3, scale * patch, scale * patch, dtype=torch.bfloat16)
    return prediction.contiguous(memory_format=torch.channels_last)


def decision_by(decide: Callable[..., object], gradients: Tensor) -> Work:
    """One step decided with all rules."""
    state, rules = StepState.at_start("cpu", places=100), StepRules(spike_factor=5.0, scales=True)
    return lambda: decide(gradients, ONE, state, rules)


def fused_lamb(parameters: list[Tensor], gradients: list[Tensor], average: list[Tensor]) -> Work:
    """One update by our kernels, as the authors' trainer clips it."""
    first, second = ([torch.zeros_like(parameter) for parameter in parameters] for _ in range(2))
    plan = LambPlan(parameters, gradients, first, second, average, LambOptions(clip_value=0.1))
    return lambda: plan.step(ONE, torch.tensor(False), ONE)


def random_norm(samples: int, height: int, width: int, channels: int) -> list[Any]:
    """Arguments of `add_norm`: a float32 stream; the branch and what is normalised in bfloat16; factors."""
    stream, branch = (torch.randn(samples, height, width, channels) for _ in range(2))
    branch_bias, weight, bias = (torch.randn(channels) for _ in range(3))
    return [stream, branch.bfloat16(), branch_bias, torch.rand(samples), weight, bias, 1e-5, torch.bfloat16]


def with_gradient(run: Callable[..., Any], given: list[Any]) -> Work:
    """An op, and the gradients of its tensors but the factors."""
    given = [one.requires_grad_(index != 3) if isinstance(one, Tensor) else one for index, one in enumerate(given)]

    def work() -> None:
        made = run(*given)
        outputs = made[:2] if isinstance(made, tuple) else [made]
        leaves = [one for one in given if isinstance(one, Tensor) and one.requires_grad]
        torch.autograd.grad(outputs, leaves, [one.detach() for one in outputs])

    return work


def compare_norms() -> dict[str, dict[str, Counts]]:
    """What `compare_forms` counts, of the ops around SwinIR-small's linear layers.

    Not compiled: the compiler takes reductions apart in other ways for a CPU than for a GPU.
    """
    norm = random_norm(SAMPLES, PATCH, PATCH, 60)
    hidden = [torch.randn(SAMPLES, PATCH, PATCH, 120).bfloat16(), torch.randn(120)]
    return {
        f"{name} with gradient, {given[0].shape[-1]} channels, bf16": {
            "eager": count_eager(with_gradient(plain, given)),
            "fused": count_fused(with_gradient(fused, given)),
        }
        for name, plain, fused, given in (
            ("add_norm", normalisation.add_norm, add_norm.add_norm_op, norm),
            ("bias_gelu", normalisation.bias_gelu, bias_gelu.bias_gelu_op, hidden),
        )
    }


def attention_inputs(heads: int, channels: int) -> list[Tensor]:
    """Upstream gradient, qkv, its bias and the table of two windows of 8, in bfloat16 as a GPU trains SwinIR."""
    features = heads * channels
    upstream, qkv = (torch.randn(1, 8, 16, count * features, dtype=torch.bfloat16) for count in (1, 3))
    return [upstream, qkv, torch.randn(3 * features), torch.randn(225, heads)]


def fused_attention(upstream: Tensor, qkv: Tensor, qkv_bias: Tensor, table: Tensor) -> None:
    """The output and all gradients by our kernels, with shifted windows."""
    form = choose_form((8, 0), qkv.dtype, 16, 8)
    window_attention.launch(qkv, qkv_bias, table, 8, 4, form)
    window_attention_backward.launch(upstream, qkv, qkv_bias, table, 8, 4, form)


def eager_attention(upstream: Tensor, *inputs: Tensor) -> None:
    """The same by autograd from the reference."""
    qkv, qkv_bias, table = (tensor.detach().requires_grad_() for tensor in inputs)
    torch.autograd.grad(attention.window_attention(qkv, qkv_bias, table, 8, 4), (qkv, qkv_bias, table), upstream)


def compare_forms() -> dict[str, dict[str, Counts]]:
    """Counts by work and form."""
    torch.manual_seed(0)
    margin = margin_of(SCALE)
    hr, sr = (random_crops(SAMPLES, SCALE, PATCH) for _ in range(2))
    prediction = random_prediction(SAMPLES, SCALE, PATCH).requires_grad_()

    def blend() -> Tensor:
        return reference.downsample_blend(hr, sr, ALPHA, SCALE, dtype=torch.bfloat16)

    def loss() -> Tensor:
        return reference.blended_loss(prediction, hr, sr, ALPHA, "l1", margin=margin)

    attended = attention_inputs(6, 10)
    compiled_blend = torch.compile(blend, dynamic=False)
    compiled_loss = torch.compile(loss, dynamic=False)
    parameters, state = lamb_parameters("cpu")
    group = parameters[GROUP]
    gradients = [parameter.grad for parameter in group if parameter.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in gradients])
    return {
        "downsample_blend x2, bf16": {
            "eager": count_eager(blend),
            "compiled": count_compiled(compiled_blend),
            "fused": count_fused(lambda: downsample_blend.launch(hr, sr, ALPHA, SCALE, "uint8", None, torch.bfloat16)),
        },
        "blended_loss l1 with gradient, bf16": {
            "eager": count_eager(lambda: loss().backward()),
            "compiled": count_compiled(lambda: compiled_loss().backward()),
            "fused": count_fused(lambda: blended_loss.launch(prediction.detach(), hr, sr, ALPHA, "l1", margin, ONE)),
        },
        "window_attention with gradients, two windows of 8, 6 heads of 10, bf16": {
            "eager": count_eager(lambda: eager_attention(*attended)),
            "fused": count_fused(lambda: fused_attention(*attended)),
        },
        f"decide_step on {flat.numel()} gradients": {
            "eager": count_eager(decision_by(decision.decide_step, flat)),
            "fused": count_fused(decision_by(decide_step.launch, flat)),
        },
        f"lamb_step on {len(group)} tensors, one of RCAN's ten groups": {
            "eager": count_eager(torch.no_grad()(lambda: lamb_per_tensor(group, state))),
            "fused": count_fused(fused_lamb([parameter.detach() for parameter in group], gradients, [])),
        },
        **compare_norms(),
        **epilogue_traffic.compare_forms(),
    }


def measure_cut(scale: int) -> PerValue:
    """One crop of the recipes' patch inside an image."""
    side = crop_side(scale, RECIPES_PATCH)
    pixels, plan = torch.zeros(3 * (side + 2) ** 2, dtype=torch.uint8), [0, 3 * (side + 2), side + 2, side + 2, 1, 1, 0]
    requested = requested_bytes(lambda: cut_crops.launch(pixels, torch.tensor([plan]), side, margin_of(scale)))
    return PerValue(compulsory.cut_crops(scale, RECIPES_PATCH), requested / (3 * side**2))


def measure_blend(scale: int) -> PerValue:
    """Both crops, bfloat16, at the recipes' patch; of one output row, for all rows ask for the same."""
    hr, sr = (random_crops(1, scale, RECIPES_PATCH)[:, : crop_side(scale, 1)] for _ in range(2))
    requested = requested_bytes(lambda: downsample_blend.launch(hr, sr, ALPHA, scale, "uint8", None, torch.bfloat16))
    return PerValue(compulsory.downsample_blend(scale, RECIPES_PATCH, 2), requested / (3 * RECIPES_PATCH))


def measure_loss(scale: int) -> PerValue:
    """One sample with both targets and a bfloat16 prediction, at the recipes' patch."""
    hr, sr = (random_crops(1, scale, RECIPES_PATCH) for _ in range(2))
    prediction = random_prediction(1, scale, RECIPES_PATCH)
    requested = requested_bytes(lambda: blended_loss.launch(prediction, hr, sr, ALPHA, "l1", margin_of(scale), ONE))
    return PerValue(compulsory.blended_loss(2), requested / prediction.numel())


def measure_attention() -> PerValue:
    """SwinIR-small's windows and heads, with gradients, in bfloat16: each program has one window."""
    inputs = attention_inputs(6, 10)
    return PerValue(
        compulsory.window_attention(2), requested_bytes(lambda: fused_attention(*inputs)) / inputs[0].numel()
    )


def measure_decision() -> PerValue:
    """The gradients of one of RCAN's convolutions, 64 to 64 channels."""
    gradients = torch.randn(64 * 64 * 9)
    return PerValue(
        compulsory.decide_step(), requested_bytes(decision_by(decide_step.launch, gradients)) / gradients.numel()
    )


def measure_lamb(*, average: bool) -> PerValue:
    """One convolution of RCAN, 64 to 64 channels."""
    parameter = torch.randn(64, 64, 3, 3)
    work = fused_lamb([parameter], [torch.randn_like(parameter)], [parameter.clone()] if average else [])
    return PerValue(compulsory.lamb_step(average=average), requested_bytes(work) / parameter.numel())


def measure_norm(*, of_gradient: bool) -> PerValue:
    """Rows of one part, as `random_norm` makes them."""
    stream, branch, _, factors, weight, *_ = given = random_norm(1, 8, 16, 60)
    total, normalised, statistics = add_norm.launch(*given)

    def work() -> object:
        if of_gradient:
            return add_norm.launch_gradient(
                stream, normalised, total, statistics, factors, weight, weight.dtype, branch.dtype, weight.dtype
            )
        return add_norm.launch(*given)

    return PerValue(compulsory.add_norm(4, 2, of_gradient=of_gradient), requested_bytes(work) / stream.numel())


def measure_gelu(*, of_gradient: bool) -> PerValue:
    """Rows of one part, in bfloat16."""
    x, bias = torch.randn(128, 120).bfloat16(), torch.randn(120)
    work = (lambda: bias_gelu.launch_gradient(x, x, bias)) if of_gradient else (lambda: bias_gelu.launch(x, bias))
    return PerValue(compulsory.bias_gelu(2, of_gradient=of_gradient), requested_bytes(work) / x.numel())


def measure_muon(*, average: bool) -> PerValue:
    """One convolution of RCAN, 64 to 64 channels, and no other weight."""
    weights, gradients, momentum = (torch.randn(64 * 576) for _ in range(3))
    others = torch.zeros(0), torch.zeros(0), torch.zeros(2)
    tensors = MuonTensors(weights, gradients, weights.clone() if average else None, momentum, *others)
    plan = MuonPlan(tensors, [Matrices(0, 64 * 576, 1, 64, 576)], MuonOptions(clip_value=0.1))
    requested = requested_bytes(lambda: plan.step(ONE, torch.tensor(False), ONE))
    return PerValue(compulsory.muon_step(average=average), requested / weights.numel())


def measure_kernels() -> dict[str, PerValue]:
    """Bytes per value of each op."""
    return {
        **{f"cut_crops x{scale}": measure_cut(scale) for scale in STENCILS},
        **{f"downsample_blend x{scale}, hr and sr, bf16": measure_blend(scale) for scale in STENCILS},
        "blended_loss l1 x2, hr and sr, bf16": measure_loss(2),
        "window_attention 8, bf16, with gradients": measure_attention(),
        "decide_step": measure_decision(),
        "lamb_step": measure_lamb(average=False),
        "lamb_step with average": measure_lamb(average=True),
        "add_norm, 60 channels, bf16": measure_norm(of_gradient=False),
        "add_norm gradient, 60 channels, bf16": measure_norm(of_gradient=True),
        "bias_gelu, 120 channels, bf16": measure_gelu(of_gradient=False),
        "bias_gelu gradient, 120 channels, bf16": measure_gelu(of_gradient=True),
        "muon_step": measure_muon(average=False),
        "muon_step with average": measure_muon(average=True),
        **{name: PerValue(*both) for name, both in epilogue_traffic.measure_kernels(RECIPES_PATCH).items()},
    }


def main() -> None:
    """Print both tables."""
    forms = Table("work", "form", "launches", "bytes", "launches / fused", "bytes / fused")
    for name, counts in compare_forms().items():
        fused = counts["fused"]
        for form, (launches, moved) in counts.items():
            ratios = f"{launches / fused.launches:.1f}", f"{moved / fused.bytes:.2f}"
            forms.add_row(name, form, str(launches), str(moved), *ratios)
    kernels = Table("kernel, bytes per value", "compulsory", "requested", "requested / compulsory")
    for name, (least, requested) in measure_kernels().items():
        kernels.add_row(name, f"{least:.1f}", f"{requested:.1f}", f"{requested / least:.2f}")
    console = Console(width=140)
    console.print(forms)
    console.print(kernels)


if __name__ == "__main__":
    main()
