"""SHA-256 of the tensors that a checkout makes, as JSON: `same_numbers` runs this file in a process of the checkout.

python bench/digests.py CHECKPOINT    # of a checkpoint's tensors
python bench/digests.py               # of every op, reference and Triton kernel, for fixed inputs
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import product

import eco_fast_kernels as ops
import torch
from eco_fast_kernels import decision
from eco_fast_kernels.fused import blended_loss as fused_loss
from eco_fast_kernels.fused import decide_step as fused_decision
from eco_fast_kernels.fused import downsample_blend as fused_input
from eco_fast_kernels.fused.lamb_step import LambPlan
from eco_fast_kernels.reference import lamb_step
from safetensors.torch import load_file
from torch import Tensor

Named = Iterator[tuple[str, Tensor]]
DTYPES = (torch.float32, torch.bfloat16)


def digest(tensor: Tensor) -> str:
    """Of shape, dtype and bytes."""
    data = tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    return hashlib.sha256(f"{tuple(tensor.shape)} {tensor.dtype} ".encode() + data).hexdigest()


def bytes_like(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.randint(256, shape, dtype=torch.uint8, generator=generator)


def in_padded_rows(crops: Tensor, margin: int) -> Tensor:
    """The same crops as the loaders place them: rows and targets begin at multiples of 16 bytes."""
    samples, height, width, channels = crops.shape
    lead = -margin * channels % 16
    pitch = -(-(lead + width * channels) // 16) * 16
    memory = torch.zeros(samples * height * pitch + 16, dtype=torch.uint8)
    start = -memory.data_ptr() % 16 + lead
    return memory.as_strided(crops.shape, (height * pitch, pitch, channels, 1), start).copy_(crops)


def inputs() -> Named:
    """D and the network's input."""
    generator = torch.Generator().manual_seed(0)
    flags, alpha = torch.tensor([False, True]), torch.tensor([0.3, 0.9])
    for scale, rounding in product((2, 3, 4, 8), ("uint8", "im2double")):
        crops = (bytes_like((2, 6 * scale, 6 * scale, 3), generator) for _ in range(2))
        hr, sr = (in_padded_rows(crop, 2 * scale) for crop in crops)
        name = f"x{scale} {rounding}"
        yield f"imresize {name}", ops.imresize(hr, scale, rounding)  # type: ignore[arg-type]
        yield f"downsample {name}", ops.downsample(hr, scale, rounding, flags)  # type: ignore[arg-type]
        for dtype in DTYPES:
            made = ops.downsample_blend(hr, sr, alpha, scale, rounding, transposed=flags, dtype=dtype)  # type: ignore[arg-type]
            yield f"input {name} {dtype}", made
        made = fused_input.launch(hr, sr, alpha, scale, rounding, flags, torch.float32)  # type: ignore[arg-type]
        yield f"input kernel {name}", made
    yield "downsample kernel", fused_input.launch(hr, None, alpha, 8, "uint8", flags, torch.uint8)


def losses() -> Named:
    """The loss and its gradient."""
    generator = torch.Generator().manual_seed(1)
    alpha, expected = torch.tensor(0.4), torch.tensor(8.0)
    for kind, dtype in product(ops.LOSS_KINDS, DTYPES):
        prediction = torch.rand((2, 3, 6, 10), generator=generator).to(dtype, memory_format=torch.channels_last)
        hr, sr = (bytes_like((2, 14, 18, 3), generator) for _ in range(2))
        leaf = prediction.clone().requires_grad_()
        loss, _ = ops.blended_loss(leaf, hr, sr, alpha, kind, margin=4, gradient_scale=expected)
        yield f"loss {kind} {dtype}", loss
        yield f"gradient {kind} {dtype}", torch.autograd.grad(loss * expected, leaf)[0]
        loss, gradient, _ = fused_loss.launch(prediction, hr, sr, alpha, kind, 4, expected)
        yield f"loss kernel {kind} {dtype}", loss
        yield f"gradient kernel {kind} {dtype}", gradient


def lamb_steps() -> Named:
    """Two steps of LAMB: weights, moments and averages."""
    options = ops.LambOptions(weight_decay=0.01, clip_value=0.5, average_decay=0.9)
    scalars = torch.tensor(0.01), torch.tensor(False), torch.tensor(0.5)
    for name in ("lamb", "lamb kernel"):
        generator = torch.Generator().manual_seed(2)
        parameters, gradients = (
            [torch.randn(shape, generator=generator) for shape in ((7,), (64, 3, 3, 3))] for _ in range(2)
        )
        first, second = ([torch.zeros_like(one) for one in parameters] for _ in range(2))
        lists = parameters, gradients, first, second, [one.clone() for one in parameters]
        plan = LambPlan(*lists, options)
        for _ in range(2):
            if name == "lamb":
                lamb_step(*lists, options, *scalars)
            else:
                plan.step(*scalars)
        for index, tensor in enumerate(tensor for group in lists for tensor in group):
            yield f"{name} {index}", tensor


def decisions() -> Named:
    """Three decisions: an accepted step, a spike, an overflow."""
    rules = ops.StepRules(spike_factor=5.0, scales=True)
    for name, decide in (("decision", decision.decide_step), ("decision kernel", fused_decision.launch)):
        state = ops.StepState.at_start("cpu", places=2, scale=8.0)
        for loss, gradient in ((3.0, 1.0), (20.0, 1.0), (4.0, float("inf"))):
            results = decide(torch.full((3,), gradient), torch.tensor(loss), state, rules)
        for index, tensor in enumerate((*results, *state)):
            yield f"{name} {index}", tensor


def main(checkpoints: list[str]) -> None:
    torch.set_num_threads(1)
    made: Iterable[tuple[str, Tensor]] = (
        load_file(checkpoints[0]).items() if checkpoints else (*inputs(), *losses(), *decisions(), *lamb_steps())
    )
    print(json.dumps({name: digest(tensor) for name, tensor in made}))


if __name__ == "__main__":
    main(sys.argv[1:])
