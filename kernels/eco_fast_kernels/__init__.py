"""The ops that eco-fast is built on: defined by `reference`, fused in Triton by `fused`, chosen by device in `ops`."""

from eco_fast_kernels.attention import takes_windows
from eco_fast_kernels.channel_attention import ChannelGradients, ChannelState, ChannelWeights, weight_gradients
from eco_fast_kernels.crops import Orientation, PlanColumn, empty_crops, move_crops
from eco_fast_kernels.decision import StepRules, StepState
from eco_fast_kernels.downsampling import ROUNDINGS, STENCILS, Rounding, crop_side, margin_of, symmetric_indices
from eco_fast_kernels.epilogues import column_sums
from eco_fast_kernels.network_ops import (
    add_parts,
    add_residual,
    attend_channels,
    attention_gradient,
    attention_sums,
    bias_relu,
    channel_sums,
    merge_gradients,
    relu_gradient,
)
from eco_fast_kernels.norm_ops import add_norm, bias_gelu
from eco_fast_kernels.ops import (
    blended_loss,
    cut_crops,
    decide_step,
    downsample,
    downsample_blend,
    imresize,
    window_attention,
)
from eco_fast_kernels.reference import LOSS_KINDS, LambOptions, LossKind, blend_lr

__all__ = [
    "LOSS_KINDS",
    "ROUNDINGS",
    "STENCILS",
    "ChannelGradients",
    "ChannelState",
    "ChannelWeights",
    "LambOptions",
    "LossKind",
    "Orientation",
    "PlanColumn",
    "Rounding",
    "StepRules",
    "StepState",
    "add_norm",
    "add_parts",
    "add_residual",
    "attend_channels",
    "attention_gradient",
    "attention_sums",
    "bias_gelu",
    "bias_relu",
    "blend_lr",
    "blended_loss",
    "channel_sums",
    "column_sums",
    "crop_side",
    "cut_crops",
    "decide_step",
    "downsample",
    "downsample_blend",
    "empty_crops",
    "imresize",
    "margin_of",
    "merge_gradients",
    "move_crops",
    "relu_gradient",
    "symmetric_indices",
    "takes_windows",
    "weight_gradients",
    "window_attention",
]
