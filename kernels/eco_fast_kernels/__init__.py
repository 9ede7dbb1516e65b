"""The ops that eco-fast is built on: defined by `reference`, fused in Triton by `fused`, chosen by device in `ops`."""

from eco_fast_kernels.downsampling import ROUNDINGS, STENCILS, Rounding, margin_of, symmetric_indices
from eco_fast_kernels.ops import blended_loss, downsample, downsample_blend, imresize, lamb_step
from eco_fast_kernels.reference import LOSS_KINDS, LossKind, blend_lr
from eco_fast_kernels.windows import empty_windows, move_windows

__all__ = [
    "LOSS_KINDS",
    "ROUNDINGS",
    "STENCILS",
    "LossKind",
    "Rounding",
    "blend_lr",
    "blended_loss",
    "downsample",
    "downsample_blend",
    "empty_windows",
    "imresize",
    "lamb_step",
    "margin_of",
    "move_windows",
    "symmetric_indices",
]
