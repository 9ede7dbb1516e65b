"""What surrounds a transformer block's linear layers, in plain torch: the definition, and the path of CPU tensors.

| op | formula |
|---|---|
| `add_norm` | total = stream + factor * (branch + its bias); layer_norm(total) * weight + bias |
| `bias_gelu` | gelu(x + bias), with the exact erf |

A branch, and x, are the output of a linear layer without its bias. Every value is computed in float32 (float64 for
float64) and rounded once.
"""

import torch
from torch import Tensor
from torch.nn import functional

from eco_fast_kernels.epilogues import accumulated

MOST_CHANNELS = 1024  # of a row that is normalised: on a GPU it is one program's


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
    """Add a branch to the residual stream, and normalise over the last dimension for the next branch.

    Args:
        stream: floating point [N, h, w, C].
        branch: likewise, of any dtype, or None for 0.
        branch_bias: [C], with a branch alone.
        factors: float32 [N], of each sample's branch (stochastic depth), or None for 1.
        weight: [C].
        bias: [C].
        eps: added to the variance.
        dtype: of the normalised values.

    Returns:
        The total, like the stream (the stream itself without a branch), and the normalised total in `dtype`.
    """
    wide = accumulated(stream.dtype)
    total = stream
    if branch is not None and branch_bias is not None:
        added = branch.to(wide) + branch_bias.to(wide)
        if factors is not None:
            added = added * factors.to(wide).view(-1, 1, 1, 1)
        total = (stream.to(wide) + added).to(stream.dtype)
    normalised = functional.layer_norm(total.to(wide), weight.shape, weight.to(wide), bias.to(wide), eps)
    return total, normalised.to(dtype)


def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    """gelu(x + bias), like x; x floating point [..., C], bias [C]."""
    wide = accumulated(x.dtype)
    return functional.gelu(x.to(wide) + bias.to(wide)).to(x.dtype)
