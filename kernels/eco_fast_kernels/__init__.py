"""The ops that eco-fast is built on; `reference` defines them in plain torch."""

from eco_fast_kernels.reference import (
    LOSS_KINDS,
    ROUNDINGS,
    STENCILS,
    LossKind,
    Rounding,
    blended_loss,
    downsample,
    downsample_blend,
    imresize,
    lamb_step,
    margin_of,
    symmetric_indices,
)

__all__ = [
    "LOSS_KINDS",
    "ROUNDINGS",
    "STENCILS",
    "LossKind",
    "Rounding",
    "blended_loss",
    "downsample",
    "downsample_blend",
    "imresize",
    "lamb_step",
    "margin_of",
    "symmetric_indices",
]
