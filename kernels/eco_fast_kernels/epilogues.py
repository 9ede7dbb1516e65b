"""What follows a convolution in a residual network, in plain torch: the definition, and the path of CPU tensors.

| op | formula |
|---|---|
| `bias_relu` | relu(x + bias) |
| `add_residual` | residual + factor * (x + bias) |
| `relu_gradient` | upstream where the activation is positive, else 0; with its column sums |
| `merge_gradients` | first + second, and factor times it; with the column sums of the latter |

x is the convolution's output without its bias. All images are [N, C, H, W] in channels_last: a row is a pixel's C
channels. Every value is computed in float32 (float64 for float64) and rounded once.

A bias's gradient is the column sums of the gradient at its place, so the pass that makes that gradient adds them up.
Its sums are partial, one row for each `PART_PIXELS` pixels of a sample, in a tensor float32 [ops, parts, C] of
`column_sums` that many ops fill, each at its own `index`: one reduction over the parts ends all of them, in a fixed
order.
"""

import torch
from torch import Tensor

PART_PIXELS = 128  # pixels of one sample whose sums are one part


def parts_of(x: Tensor) -> int:
    """Parts of a sample's column sums: of an image [N, C, H, W]."""
    return -(-x.shape[2] * x.shape[3] // PART_PIXELS)


def column_sums(x: Tensor, ops: int) -> Tensor:
    """An empty tensor for the partial column sums of `ops` gradients like x: float32 [ops, N * parts, C]."""
    return x.new_empty((ops, len(x) * parts_of(x), x.shape[1]), dtype=accumulated(x.dtype))


def accumulated(dtype: torch.dtype) -> torch.dtype:
    """What values of a dtype are computed in."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def bias_relu(x: Tensor, bias: Tensor) -> Tensor:
    """relu(x + bias), like x; x floating point [N, C, H, W], bias [C]."""
    wide = accumulated(x.dtype)
    return (x.to(wide) + bias.to(wide).view(-1, 1, 1)).relu().to(x.dtype)


def add_residual(
    residual: Tensor,
    x: Tensor,
    bias: Tensor,
    factor: float = 1.0,
    factors: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The sum of the residual and factor * (x + bias).

    Args:
        residual: floating point [N, C, H, W].
        x: likewise, of any dtype.
        bias: [C].
        factor: of the branch.
        factors: float32 [N], further factors of each sample's branch (stochastic depth), or None.
        dtype: of the result; None: the residual's.
    """
    wide = accumulated(residual.dtype)
    branch = factor * (x.to(wide) + bias.to(wide).view(-1, 1, 1))
    if factors is not None:
        branch = branch * factors.to(wide).view(-1, 1, 1, 1)
    return (residual.to(wide) + branch).to(dtype or residual.dtype)


def relu_gradient(upstream: Tensor, activation: Tensor, sums: Tensor, index: int) -> Tensor:
    """Upstream where the activation is positive, else 0; `sums[index]` gets its partial column sums.

    Args:
        upstream: floating point [N, C, H, W].
        activation: of the ReLU, likewise.
        sums: of `column_sums`.
        index: this op's place in it.
    """
    gradient = torch.where(activation <= 0, 0, upstream)
    sums[index] = partial_sums(gradient).flatten(0, 1)
    return gradient


def merge_gradients(
    first: Tensor,
    second: Tensor | None,
    factor: float,
    factors: Tensor | None,
    dtype: torch.dtype,
    sums: Tensor,
    index: int,
) -> tuple[Tensor, Tensor]:
    """The gradient at a residual connection, and at the end of its branch; `sums[index]` gets the latter's column sums.

    Args:
        first: what came along the connection, floating point [N, C, H, W].
        second: what came out of the branch behind it, likewise, or None for 0.
        factor: of the branch before it.
        factors: see `add_residual`.
        dtype: of the branch's gradient.
        sums: of `column_sums`; the sums are those of the rounded values.
        index: this op's place in it.

    Returns:
        first + second in the first's dtype, empty without a second; factor * (first + second) in `dtype`, empty where
        that is the same.
    """
    wide = accumulated(first.dtype)
    total = first if second is None else (first.to(wide) + second.to(wide)).to(first.dtype)
    branch = factor * total.to(wide)
    if factors is not None:
        branch = branch * factors.to(wide).view(-1, 1, 1, 1)
    same = factor == 1 and factors is None and dtype == first.dtype
    scaled = branch.to(dtype)
    sums[index] = partial_sums(scaled).flatten(0, 1)
    nothing = first.new_empty(0)
    return nothing if second is None else total, nothing.to(dtype) if same else scaled


def add_parts(sums: Tensor, dtype: torch.dtype) -> Tensor:
    """The column sums of one op, [C], from a tensor that `column_sums` made for it alone."""
    return sums[0].sum(0).to(dtype)


def partial_sums(x: Tensor) -> Tensor:
    """Sums over `PART_PIXELS` pixels of a sample each: [N, C, H, W] to [N, parts, C], float32 (float64 of float64)."""
    rows = x.to(accumulated(x.dtype)).flatten(2)
    padded = torch.nn.functional.pad(rows, (0, -rows.shape[2] % PART_PIXELS))
    return padded.view(*rows.shape[:2], -1, PART_PIXELS).sum(3).transpose(1, 2)
