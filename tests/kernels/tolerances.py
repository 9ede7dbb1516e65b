"""How far a kernel may be from float64: at most twice as far as plain torch."""

import torch
from torch import Tensor


def allowed(theirs: Tensor, true: Tensor, operations: int, device: str) -> Tensor:
    """Twice plain torch's largest error; of a bfloat16, which Triton's interpreter cuts off, a unit in the last place.

    A few numbers may come out exact by chance: no error is counted as less than what each of so many operations in
    float32 (a sum has the levels of its tree), and the last one's rounding, may do to the largest value.
    """
    rounding = (torch.finfo(theirs.dtype).eps + operations * torch.finfo(torch.float32).eps) / 2
    bound = torch.maximum(2 * (theirs.double() - true).abs().max(), rounding * true.abs().max())
    truncates = device == "cpu" and theirs.dtype == torch.bfloat16
    return bound + torch.finfo(torch.bfloat16).eps * true.abs() if truncates else bound


def levels(values: int) -> int:
    """Of a sum's tree."""
    return (values - 1).bit_length()
