"""The ops of `normalisation` as networks call them: arguments checked, then the path that the device decides.

CPU tensors run the formulas, and autograd and compilers see through them. CUDA tensors run Triton, which is imported
when the first one comes: each kernel is an op of torch's (`torch.library.triton_op`) that a compiler takes apart, so
that compiled code launches the kernels itself.
"""

import torch
from torch import Tensor

from eco_fast_kernels import normalisation
from eco_fast_kernels.checks import check_computed, check_device
from eco_fast_kernels.normalisation import MOST_CHANNELS


def add_norm(
    stream: Tensor,
    branch: Tensor | None,
    branch_bias: Tensor | None,
    factors: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    eps: float,
    dtype: torch.dtype,
) -> tuple[Tensor, Tensor]:
    """Add a branch to the residual stream and normalise: see `normalisation.add_norm` for formula and arguments.

    Differentiable in all of them but the factors. C is at most `MOST_CHANNELS`.

    Raises:
        ValueError: bad shapes, dtypes, strides or devices; a branch without its bias, or a bias or factors without one.
    """
    _check_rows("add_norm", "the stream", stream)
    check_computed("add_norm", "the normalised values", dtype, stream)
    channels, samples = stream.shape[-1:], stream.shape[:1]
    if stream.ndim != 4 or channels[0] > MOST_CHANNELS:
        raise ValueError(
            f"add_norm: the stream must be [N, h, w, C], C at most {MOST_CHANNELS}, got {tuple(stream.shape)}"
        )
    if (branch is None) != (branch_bias is None) or (branch is None and factors is not None):
        raise ValueError("add_norm: a branch comes with the bias of its linear layer, and factors with a branch alone")
    if branch is not None:
        _check_rows("add_norm", "the branch", branch)
        _check_like("add_norm", "the branch", branch, stream.shape, stream)
    for name, vector in (("the weight", weight), ("the bias", bias), ("the branch's bias", branch_bias)):
        if vector is not None:
            check_computed("add_norm", name, vector.dtype, stream)
            _check_like("add_norm", name, vector, channels, stream)
    if factors is not None:
        _check_like("add_norm", "factors", factors, samples, stream)
        if factors.dtype != torch.float32:
            raise ValueError(f"add_norm: factors must be float32, got {factors.dtype}")
    if not _runs_triton(stream):
        return normalisation.add_norm(stream, branch, branch_bias, factors, weight, bias, eps, dtype)
    from eco_fast_kernels.fused import add_norm as kernel  # noqa: PLC0415

    total, normalised, _ = kernel.add_norm_op(stream, branch, branch_bias, factors, weight, bias, eps, dtype)
    return stream if branch is None else total, normalised


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias): see `normalisation.bias_gelu`.

    Raises:
        ValueError: bad shapes, dtypes, strides or devices.
    """
    _check_rows("bias_gelu", "x", x)
    check_computed("bias_gelu", "the bias", bias.dtype, x)
    _check_like("bias_gelu", "the bias", bias, x.shape[-1:], x)
    if not _runs_triton(x):
        return normalisation.bias_gelu(x, bias)
    from eco_fast_kernels.fused import bias_gelu as kernel  # noqa: PLC0415

    y: Tensor = kernel.bias_gelu_op(x, bias)
    return y


def _runs_triton(tensor: Tensor) -> bool:
    return tensor.is_cuda


def _check_rows(op: str, name: str, tensor: Tensor) -> None:
    check_computed(op, name, tensor.dtype, tensor)
    if not tensor.numel() or not tensor.is_contiguous():
        raise ValueError(
            f"{op}: {name} must be contiguous and not empty, got {tuple(tensor.shape)} with strides {tensor.stride()}; "
            "call .contiguous() on it"
        )


def _check_like(op: str, name: str, tensor: Tensor, shape: torch.Size, like: Tensor) -> None:
    if tensor.shape != shape or not tensor.is_contiguous():
        raise ValueError(
            f"{op}: {name} must be contiguous {tuple(shape)}, got {tuple(tensor.shape)} with strides {tensor.stride()}"
        )
    check_device(op, name, tensor, like)
