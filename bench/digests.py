"""SHA-256 of the tensors that a checkout makes, as JSON: `same_numbers` runs this file in a process of the checkout.

python bench/digests.py CHECKPOINT    # of a checkpoint's tensors
python bench/digests.py               # of every op, reference and Triton kernel, for fixed inputs
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from itertools import product
from typing import Any

import eco_fast_kernels as ops
import torch
from eco_fast_kernels.fused import blended_loss as fused_loss
from eco_fast_kernels.fused import downsample_blend as fused_input
from eco_fast_kernels.fused import lamb_step as fused_lamb
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
    hyper = {"epsilon": 1e-6, "weight_decay": 0.01, "norm_clamp": 10.0, "clip_value": 0.5, "average_decay": 0.9}
    gathered: Any = getattr(ops, "LambOptions", None)  # earlier checkouts take the values one by one
    options = {"options": gathered(**hyper)} if gathered else {"betas": (0.9, 0.99), **hyper}
    kernel: Any = fused_lamb.launch
    reference: Any = ops.lamb_step
    for name in ("lamb", "lamb kernel"):
        generator = torch.Generator().manual_seed(2)
        parameters, gradients = (
            [torch.randn(shape, generator=generator) for shape in ((7,), (64, 3, 3, 3))] for _ in range(2)
        )
        state = [parameters, gradients, *([torch.zeros_like(one) for one in parameters] for _ in range(2))]
        average = [one.clone() for one in parameters]
        scalars = {
            "learning_rate": torch.tensor(0.01),
            "skip": torch.tensor(False),
            "step_count": torch.tensor(0),
            "inverse_scale": torch.tensor(0.5),
            **options,
        }
        for _ in range(2):
            if name == "lamb":
                reference(*state, average=average, **scalars)
            else:
                kernel(*state, average, **scalars)
        for index, tensor in enumerate(tensor for group in (*state, average) for tensor in group):
            yield f"{name} {index}", tensor


def main(checkpoints: list[str]) -> None:
    torch.set_num_threads(1)
    made: Iterable[tuple[str, Tensor]] = (
        load_file(checkpoints[0]).items() if checkpoints else (*inputs(), *losses(), *lamb_steps())
    )
    print(json.dumps({name: digest(tensor) for name, tensor in made}))


if __name__ == "__main__":
    main(sys.argv[1:])
