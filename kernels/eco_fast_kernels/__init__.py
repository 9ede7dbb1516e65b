"""The ops that eco-fast is built on: defined by `reference`, fused in Triton by `fused`, chosen by device in `ops`."""

from eco_fast_kernels.crops import Orientation, PlanColumn, empty_crops, move_crops
from eco_fast_kernels.decision import StepRules, StepState
from eco_fast_kernels.downsampling import ROUNDINGS, STENCILS, Rounding, crop_side, margin_of, symmetric_indices
from eco_fast_kernels.ops import blended_loss, cut_crops, decide_step, downsample, downsample_blend, imresize
from eco_fast_kernels.reference import LOSS_KINDS, LambOptions, LossKind, blend_lr

__all__ = [
    "LOSS_KINDS",
    "ROUNDINGS",
    "STENCILS",
    "LambOptions",
    "LossKind",
    "Orientation",
    "PlanColumn",
    "Rounding",
    "StepRules",
    "StepState",
    "blend_lr",
    "blended_loss",
    "crop_side",
    "cut_crops",
    "decide_step",
    "downsample",
    "downsample_blend",
    "empty_crops",
    "imresize",
    "margin_of",
    "move_crops",
    "symmetric_indices",
]
