"""SwinIR (Liang et al., ICCVW 2021, arXiv 2108.10257), with the state-dict keys of the authors' network_swinir.py."""

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from eco_fast.models.network import (
    RGB_MEAN,
    Network,
    SubPixelConvolution,
    conv3x3,
    reflect_pad,
    scale_of,
    sub_pixel_upsampler,
    up_to_multiple,
)
from eco_fast.models.passes import computed_in
from eco_fast.models.swin_blocks import Layer, SwinBlock, add_convolved, normalise, shift_mask

UPSAMPLER_FEATURES = 64
SCALES = {"pixelshuffle": (2, 3, 4, 8), "pixelshuffledirect": (2, 3, 4)}


class SwinIR(Network):
    """SwinIR. The defaults are the classical SwinIR-M; 60 features in 4 layers, "pixelshuffledirect", are SwinIR-S.

    Args:
        scale: 2, 3, 4 or, with "pixelshuffle", 8.
        features: channels of the body.
        depths: blocks of each layer.
        heads: of the attention in each layer; divide the features.
        window: side of an attention window, even.
        mlp_ratio: width of the MLPs over the features.
        upsampler: "pixelshuffle", or "pixelshuffledirect" with a single convolution.
        drop_path: probability of the last block to be left out of a training sample; it grows linearly from 0.
        patch: side of the training images, a multiple of the window; images of other sizes take a little longer.

    Raises:
        ValueError: arguments that do not fit together.
    """

    architecture = "swinir"
    scale_dependent_keys = ("upsample.", "conv_last.")
    body_layers = r"layers\.|conv_after_body"
    recomputed_buffers = ("attn_mask", "relative_position_index")
    repeated_block = Layer
    compiled_for_images = False
    compiled_on = ("cuda",)  # a CPU spends its time in convolutions and attention, which the compiler leaves alone

    mean: Tensor
    keep: Tensor

    def __init__(
        self,
        scale: int,
        features: int = 180,
        depths: Sequence[int] = (6,) * 6,
        heads: Sequence[int] = (6,) * 6,
        window: int = 8,
        mlp_ratio: float = 2.0,
        upsampler: str = "pixelshuffle",
        drop_path: float = 0.1,
        patch: int = 48,
    ) -> None:
        _check(scale, features, depths, heads, window, upsampler, patch)
        super().__init__(
            scale,
            features=features,
            depths=list(depths),
            heads=list(heads),
            window=window,
            mlp_ratio=mlp_ratio,
            upsampler=upsampler,
            drop_path=drop_path,
            patch=patch,
        )
        self.window = self.grid = window
        self.patch = patch
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("keep", 1 - torch.linspace(0, drop_path, sum(depths)), persistent=False)
        self.conv_first = conv3x3(3, features)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(features)})
        self.layers = nn.ModuleList(
            Layer(features, depth, count, window, mlp_ratio, patch) for depth, count in zip(depths, heads, strict=True)
        )
        self.norm = nn.LayerNorm(features)
        self.conv_after_body = conv3x3(features, features)
        if upsampler == "pixelshuffle":
            self.conv_before_upsample = nn.Sequential(conv3x3(features, UPSAMPLER_FEATURES), nn.LeakyReLU())
            self.upsample = sub_pixel_upsampler(scale, UPSAMPLER_FEATURES)
            self.conv_last: nn.Module = conv3x3(UPSAMPLER_FEATURES, 3)
        else:
            self.conv_before_upsample = nn.Sequential()
            self.upsample = nn.Sequential(SubPixelConvolution(features, 3, scale))
            self.conv_last = nn.Identity()
        self.apply(_initialise)

    @property
    def halo(self) -> int:
        """Four windows, the overlap that the authors' tiled test takes.

        Each pair of blocks sees up to two windows further, so an output pixel depends on nearly the whole image; but
        attention is local in what it learns, and beyond this distance little is left.
        """
        return 4 * self.window

    def forward(self, lr: Tensor, drop_path_uniforms: Tensor | None = None) -> Tensor:
        """Float [N, 3, h, w], 0..1, to [N, 3, scale*h, scale*w], about 0..1. Any h and w.

        Args:
            lr: the images.
            drop_path_uniforms: uniform in 0..1, float32 [N, 2 * blocks]: which branches of which blocks a training
                sample leaves out (stochastic depth); None: none.
        """
        height, width = lr.shape[2:]
        lr = reflect_pad(lr, *(up_to_multiple(size, self.window) for size in (height, width)))
        shallow = self.conv_first(lr - self.mean)
        stream_dtype = torch.float32 if torch.is_autocast_enabled("cuda") else lr.dtype
        x = normalise(shallow.permute(0, 2, 3, 1), self.patch_embed["norm"], stream_dtype)
        mask, factors = self._mask(x), self._branch_factors(drop_path_uniforms)
        for layer, depth in zip(self.layers, self.hyperparameters["depths"], strict=True):
            x, factors = layer(x, mask, factors[:depth]), factors[depth:]
        x = normalise(x, self.norm, computed_in(x)).permute(0, 3, 1, 2)
        x = add_convolved(shallow, x, self.conv_after_body)
        sr: Tensor = self.conv_last(self.upsample(self.conv_before_upsample(x))) + self.mean
        return sr[:, :, : self.scale * height, : self.scale * width]

    def _mask(self, x: Tensor) -> Tensor | None:
        """The mask of the shifted blocks, one for all of them: theirs if the image is a training patch."""
        height, width = x.shape[1:3]
        first = next(
            (block.attn_mask for block in self.modules() if isinstance(block, SwinBlock) and block.shift), None
        )
        if first is None or (height, width) == (self.patch, self.patch):
            return first
        return shift_mask(height, width, self.window, self.window // 2, x.device)

    def _branch_factors(self, uniforms: Tensor | None) -> Sequence[Tensor | None]:
        """For each block [2, N, 1, 1, 1]: 0 for a branch that is left out, else what keeps the mean; None for 1."""
        if uniforms is None:
            return [None] * len(self.keep)
        keep = self.keep.view(-1, 1, 1, 1, 1, 1)
        drawn = uniforms.view(len(uniforms), len(self.keep), 2, 1, 1, 1).permute(1, 2, 0, 3, 4, 5)
        return ((drawn < keep) / keep).contiguous().unbind()

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Tensor], facts: Mapping[str, Any]) -> Self | None:
        """See `Network.from_state_dict`. What leaves no trace in the weights, `drop_path`, comes from `facts`."""
        first = "layers.0.residual_group.blocks.0"
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        wanted = {
            "conv_first.weight": 4,
            "upsample.0.weight": 4,
            f"{first}.mlp.fc1.weight": 2,
            f"{first}.attn.relative_position_bias_table": 2,
        }
        if any(len(shapes.get(key, ())) != ndim for key, ndim in wanted.items()):
            return None
        features = shapes["conv_first.weight"][0]
        blocks = [re.fullmatch(r"layers\.(\d+)\.residual_group\.blocks\.\d+\.norm1\.weight", key) for key in state]
        owners = [int(block[1]) for block in blocks if block]
        depths = [owners.count(layer) for layer in range(max(owners) + 1)]
        table = "layers.{}.residual_group.blocks.0.attn.relative_position_bias_table"
        window = (math.isqrt(shapes[table.format(0)][0]) + 1) // 2
        direct = "conv_last.weight" not in state
        mask = shapes.get("layers.0.residual_group.blocks.1.attn_mask")
        try:
            return cls(
                math.isqrt(shapes["upsample.0.weight"][0] // 3)
                if direct
                else scale_of(state, "upsample.", UPSAMPLER_FEATURES),
                features,
                depths,
                [shapes[table.format(layer)][1] for layer in range(len(depths))],
                window,
                shapes[f"{first}.mlp.fc1.weight"][0] / features,
                "pixelshuffledirect" if direct else "pixelshuffle",
                facts.get("drop_path", 0.1),
                math.isqrt(mask[0]) * window if mask else facts.get("patch", 48),
            )
        except (LookupError, ValueError):  # a layer without its table, or sizes of no SwinIR
            return None


def _check(
    scale: int, features: int, depths: Sequence[int], heads: Sequence[int], window: int, upsampler: str, patch: int
) -> None:
    if upsampler not in SCALES:
        raise ValueError(f"SwinIR: the upsampler must be one of {', '.join(SCALES)}, got {upsampler!r}")
    if scale not in SCALES[upsampler]:
        raise ValueError(f"SwinIR: {upsampler} has scales {SCALES[upsampler]}, got {scale}")
    if len(depths) != len(heads) or not depths:
        raise ValueError(f"SwinIR: every layer needs a depth and heads, got {len(depths)} depths, {len(heads)} heads")
    if any(features % count for count in heads):
        raise ValueError(f"SwinIR: heads must divide the {features} features, got {list(heads)}")
    if window % 2 or window < 2:
        raise ValueError(f"SwinIR: a window is shifted by its half, so its side must be even, got {window}")
    if patch % window or patch <= window:
        raise ValueError(f"SwinIR: the patch must be several windows of {window}, got {patch}")


def _initialise(module: nn.Module) -> None:
    """The authors' fresh weights; those of convolutions are torch's."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
