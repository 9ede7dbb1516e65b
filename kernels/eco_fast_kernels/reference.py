"""The ops in plain torch: their definition, and the path that CPU tensors take.

| op | formula |
|---|---|
| `cut_crops` | pixels of an image, its border extended as MATLAB's `imresize` does, flipped and transposed |
| `downsample` | D: see `downsampling` |
| `downsample_blend` | (D(sr) + alpha * (D(hr) - D(sr))) / 255 |
| `blended_loss` | mean of l(255 * prediction - (sr + alpha * (hr - sr))) |
| `decide_step` | is a step to be skipped: see `decision` |
| `lamb_step` | LAMB with a clamped weight norm, for all tensors at once |

Sources: Lee and Heo, AAAI 2024, Eq. 14; LAMB: You et al., ICLR 2020, in the form of `torch_optimizer.Lamb` that rcan-it
and the authors of ECO train with.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from eco_fast_kernels.checks import check_target
from eco_fast_kernels.crops import CHANNELS, Orientation, empty_crops, first_present
from eco_fast_kernels.downsampling import Rounding, downsample, symmetric_indices

LossKind = Literal["l1", "l2", "charbonnier"]

LOSS_KINDS: tuple[LossKind, ...] = ("l1", "l2", "charbonnier")
CHARBONNIER_EPSILON = 0.255  # LapSRN's 1e-3 on 0..1 images, on the 0..255 scale


def cut_crops(pixels: Tensor, plan: Tensor, side: int, margin: int) -> Tensor:
    """Crops of images, flipped and transposed, beyond an image's edge its symmetric extension, however far.

    Args:
        pixels: uint8 [bytes], with images uint8 [H, W, 3] somewhere in it, whose rows may lie apart.
        plan: int64 [N, 7], see `crops.PlanColumn`.
        side: pixels a side of a crop, margin included.
        margin: of it, in pixels; decides how the crops lie (see `crops`).

    Returns:
        uint8 [N, side, side, 3], laid out as `crops.empty_crops`; unused bytes are 0.
    """
    out = empty_crops(len(plan), side, margin)
    for crop, (offset, row_bytes, height, width, top, left, orientation) in zip(out, plan.tolist(), strict=True):
        image = pixels[offset:].as_strided((height, width, CHANNELS), (row_bytes, CHANNELS, 1))
        rows, columns = symmetric_indices(top, top + side, height), symmetric_indices(left, left + side, width)
        if orientation & Orientation.FLIP_ROWS:
            rows = rows[::-1].copy()
        if orientation & Orientation.FLIP_COLUMNS:
            columns = columns[::-1].copy()
        cut = image[torch.from_numpy(rows)[:, None], torch.from_numpy(columns)]
        crop.copy_(cut.transpose(0, 1) if orientation & Orientation.TRANSPOSE else cut)
    return out


def downsample_blend(
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    scale: int,
    rounding: Rounding = "uint8",
    *,
    transposed: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The network's input: the LR images of both crops, blended.

    Args:
        hr: uint8 [N, scale*h + 4*scale, scale*w + 4*scale, 3], or None where `alpha` is 0 throughout.
        sr: the centroid's crops, of the same shape, or None where `alpha` is 1 throughout.
        alpha: float32 [] or [N], weight of `hr`, 0..1.
        scale: 2, 3, 4 or 8.
        rounding: see `downsample`.
        transposed: see `downsample`.
        dtype: of the result; the blend itself is float32, rounded once.

    Returns:
        dtype [N, 3, h, w] in 0..1, channels_last.
    """
    lr_of_hr, lr_of_sr = (
        None if crops is None else downsample(crops, scale, rounding, transposed) for crops in (hr, sr)
    )
    return blend_lr(lr_of_hr, lr_of_sr, alpha, dtype)


def blend_lr(
    lr_of_hr: Tensor | None, lr_of_sr: Tensor | None, alpha: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """The blend of `downsample_blend`, of LR images that are made already.

    Args:
        lr_of_hr: uint8 [N, h, w, 3], or None where `alpha` is 0 throughout.
        lr_of_sr: likewise, or None where `alpha` is 1 throughout.
        alpha: float32 [] or [N], weight of `lr_of_hr`, 0..1.
        dtype: of the result; the blend itself is float32, rounded once.

    Returns:
        dtype [N, 3, h, w] in 0..1, channels_last.
    """
    first, second = _present("downsample_blend", lr_of_hr, lr_of_sr)
    return (_blend(first, second, alpha) / 255).to(dtype).permute(0, 3, 1, 2)


def blended_loss(
    prediction: Tensor, hr: Tensor | None, sr: Tensor | None, alpha: Tensor, kind: LossKind = "l1", *, margin: int = 0
) -> Tensor:
    """Mean loss between the prediction and the blended target, on the 0..255 scale.

    Args:
        prediction: floating point [N, C, H, W], 0..1.
        hr: uint8 [N, H + 2*margin, W + 2*margin, C], or None where `alpha` is 0 throughout.
        sr: as `hr`, the centroid; None where `alpha` is 1 throughout.
        alpha: float32 [] or [N], weight of `hr`, 0..1.
        kind: l1 = |d|, l2 = d**2, charbonnier = sqrt(d**2 + 0.255**2), with d in grey levels.
        margin: pixels on each side of hr and sr that are not part of the target.

    Returns:
        float32 [].
    """
    if kind not in LOSS_KINDS:
        raise ValueError(f"blended_loss: the kind is one of {', '.join(LOSS_KINDS)}, got {kind!r}")
    difference = _difference(prediction, hr, sr, alpha, margin)
    if kind == "l1":
        return difference.abs().mean()
    if kind == "l2":
        return difference.square().mean()
    return (difference.square() + CHARBONNIER_EPSILON**2).sqrt().mean()


@torch.no_grad()
def blended_loss_and_gradient(
    prediction: Tensor,
    hr: Tensor | None,
    sr: Tensor | None,
    alpha: Tensor,
    kind: LossKind,
    margin: int,
    gradient_scale: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """`blended_loss`, and `gradient_scale` (or 1) times its gradient, channels_last, in closed form."""
    difference = _difference(prediction, hr, sr, alpha, margin)
    if kind == "l1":
        loss, slope = difference.abs(), difference.sign()
    elif kind == "l2":
        loss, slope = difference.square(), 2 * difference
    else:
        loss = (difference.square() + CHARBONNIER_EPSILON**2).sqrt()
        slope = difference / loss
    of_mean = 255 / prediction.numel()
    gradient = (slope * (of_mean if gradient_scale is None else gradient_scale * of_mean)).to(prediction.dtype)
    samples, channels, height, width = prediction.shape
    return loss.mean(), gradient.view(samples, height, width, channels).permute(0, 3, 1, 2)


class LambOptions(NamedTuple):
    """What stays the same in all steps of LAMB; see `lamb_step` for the formula."""

    beta1: float = 0.9
    """Decay of m."""
    beta2: float = 0.99
    """Decay of v."""
    epsilon: float = 1e-6
    """Added to sqrt(v)."""
    weight_decay: float = 0.0
    """Decoupled from the moments, inside the trust ratio."""
    norm_clamp: float = 10.0
    """Upper bound of |p|."""
    clip_value: float | None = None
    """Bound of each gradient element, or None."""
    average_decay: float = 0.999
    """Decay of the running average of the weights."""


@torch.no_grad()
def lamb_step(
    parameters: Sequence[Tensor],
    gradients: Sequence[Tensor],
    exp_avg: Sequence[Tensor],
    exp_avg_sq: Sequence[Tensor],
    average: Sequence[Tensor],
    options: LambOptions,
    learning_rate: Tensor,
    skip: Tensor,
    inverse_scale: Tensor,
) -> None:
    """One LAMB update in place; per tensor, with g = gradient * inverse_scale, clipped element by element:

        m = b1*m + (1-b1)*g,  v = b2*v + (1-b2)*g*g,  u = m / (sqrt(v) + epsilon) + weight_decay*p
        p -= learning_rate * min(|p|, norm_clamp) / |u| * u       (ratio 1 where either norm is 0)
        average = average_decay * average + (1 - average_decay) * p

    No bias correction and no global-norm clipping: the form that ECO was trained with.

    Args:
        parameters: float32 tensors of any shape.
        gradients: same shapes; not changed.
        exp_avg: m, same shapes.
        exp_avg_sq: v, same shapes.
        average: running average of the weights, same shapes; empty for none.
        options: the constants of the formula.
        learning_rate: float32 [].
        skip: bool []; where true nothing changes, whatever the gradients hold.
        inverse_scale: float32 [], undoes a gradient scaler's factor.
    """  # noqa: D415 - the formula is the summary
    if skip:
        return
    averages: Sequence[Tensor | None] = average or [None] * len(parameters)
    beta1, beta2, clip = options.beta1, options.beta2, options.clip_value
    for p, gradient, m, v, mean in zip(parameters, gradients, exp_avg, exp_avg_sq, averages, strict=True):
        g = gradient * inverse_scale
        if clip is not None:
            g = g.clamp(-clip, clip)
        m.mul_(beta1).add_(g, alpha=1 - beta1)
        v.mul_(beta2).addcmul_(g, g, value=1 - beta2)
        update = m / v.sqrt().add_(options.epsilon)
        if options.weight_decay:
            update.add_(p, alpha=options.weight_decay)
        weight_norm, update_norm = p.norm().clamp(max=options.norm_clamp), update.norm()
        trust = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
        p.sub_(update.mul_(learning_rate * trust))
        if mean is not None:
            mean.lerp_(p, 1 - options.average_decay)


def _blend(hr: Tensor, sr: Tensor, alpha: Tensor) -> Tensor:
    """The blend sr + alpha * (hr - sr) in float32, 0..255; this form returns hr and sr themselves at 1 and 0."""
    weight = alpha.view(-1, *[1] * (hr.ndim - 1)) if alpha.ndim else alpha
    real, centroid = hr.float(), sr.float()
    return centroid + weight * (real - centroid)


def _difference(prediction: Tensor, hr: Tensor | None, sr: Tensor | None, alpha: Tensor, margin: int) -> Tensor:
    """255 * prediction - target in float32, in grey levels: [N, H, W * C], so that a compiler sees rows long enough."""
    first, second = _present("blended_loss", hr, sr)
    check_target("blended_loss", "crops", first, prediction, margin)
    _, channels, height, width = prediction.shape
    rows, values = slice(margin, margin + height), slice(channels * margin, channels * (margin + width))
    real, centroid = (crops.flatten(2)[:, rows, values] for crops in (first, second))
    target = _blend(real, centroid, alpha)
    return prediction.permute(0, 2, 3, 1).flatten(2).float() * 255 - target


def _present(op: str, hr: Tensor | None, sr: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both images; an absent one (its weight is 0) is replaced by the other, which leaves the blend unchanged."""
    first, second = first_present(op, hr, sr), first_present(op, sr, hr)
    if first.shape != second.shape:
        raise ValueError(f"{op}: hr is {tuple(first.shape)} but sr is {tuple(second.shape)}")
    return first, second
