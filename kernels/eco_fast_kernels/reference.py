"""The ops in plain torch: their definition, and the path that CPU tensors take.

| op | formula |
|---|---|
| `downsample` | D, MATLAB's `imresize(A, 1/scale, "bicubic")` of windows that carry a margin |
| `downsample_blend` | (D(sr) + alpha * (D(hr) - D(sr))) / 255 |
| `blended_loss` | mean of l(255 * prediction - (sr + alpha * (hr - sr))) |
| `lamb_step` | LAMB with a clamped weight norm, for all tensors at once |

**Why D is exact.** For whole scales MATLAB's antialiased bicubic weights are rationals with a small common denominator
(`STENCILS`), the same for every output pixel. Pixels are centred by subtracting 128, so each partial sum of
weight * pixel is a whole number below 2**24 for one pass (2**53 for two): float32 (float64) holds all of them, in any
order of summation, with or without fused multiply-add. The division is exact for powers of two; at scale 3 no sum lies
nearer than 1/162 to a rounding tie. So every implementation of this formula gives the same bytes.

Sources: MATLAB's `imresize` (kernel a = -0.5, antialiasing, symmetric border, rows first, 8-bit images are rounded half
up after each of the two passes); Lee and Heo, AAAI 2024, Eq. 14; LAMB: You et al., ICLR 2020, in the form of
`torch_optimizer.Lamb` that rcan-it and the authors of ECO train with.
"""

from collections.abc import Callable
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from eco_fast_kernels.windows import either

Rounding = Literal["uint8", "im2double"]
LossKind = Literal["l1", "l2", "charbonnier"]

ROUNDINGS: tuple[Rounding, ...] = ("uint8", "im2double")
LOSS_KINDS: tuple[LossKind, ...] = ("l1", "l2", "charbonnier")
CHARBONNIER_EPSILON = 0.255  # LapSRN's 1e-3 on 0..1 images, on the 0..255 scale

# Left half of the symmetric stencil (scale 3 ends with its centre tap), and the denominator that all weights share.
STENCILS: dict[int, tuple[tuple[int, ...], int]] = {
    2: ((-3, -9, 29, 111), 256),
    3: ((-1, -2, 0, 9, 21, 27), 81),
    4: ((-7, -45, -75, -49, 93, 399, 745, 987), 4096),
    8: (
        (-15, -117, -275, -441, -567, -605, -507, -225, 317, 1263, 2505, 3899, 5301, 6567, 7553, 8115),
        65536,
    ),
}


def margin_of(scale: int) -> int:
    """HR pixels that a window needs beyond each side, so that D inside it needs nothing else: 2 * scale."""
    return 2 * scale


def symmetric_indices(start: int, stop: int, size: int) -> npt.NDArray[np.int64]:
    """Where positions `start..stop-1` fall in an axis of `size` pixels: MATLAB's symmetric border, edge repeated."""
    folded = np.arange(start, stop, dtype=np.int64) % (2 * size)
    return np.where(folded < size, folded, 2 * size - 1 - folded)


def downsample(windows: Tensor, scale: int, rounding: Rounding = "uint8", transposed: Tensor | None = None) -> Tensor:
    """D of windows that carry a margin of `2 * scale` pixels on each side.

    Args:
        windows: uint8 [N, scale*h + 4*scale, scale*w + 4*scale, C].
        scale: 2, 3, 4 or 8.
        rounding: "uint8" rounds after each pass (MATLAB on 8-bit images), "im2double" once at the end.
        transposed: bool [N], the samples whose rows and columns the loader has swapped. MATLAB rounds between the two
            passes, so those are downsampled columns first; needs square windows.

    Returns:
        uint8 [N, h, w, C], equal to the same crop of D of the whole image.
    """
    check_windows("downsample", windows, scale, rounding, transposed)
    channels = windows.shape[3]
    centred = windows.flatten(2).to(torch.float32 if rounding == "uint8" else torch.float64) - 128
    if rounding == "im2double":  # exact up to its only rounding, in either order of the passes
        out = _round(_pass_columns(_pass_rows(centred, scale), scale, channels), scale, passes=2)
    else:
        out = _round(_pass_columns(_round(_pass_rows(centred, scale), scale), scale, channels), scale)
        if transposed is not None:
            columns_first = _round(_pass_rows(_round(_pass_columns(centred, scale, channels), scale), scale), scale)
            out = torch.where(transposed.view(-1, 1, 1), columns_first, out)
    out = (out + 128).to(torch.uint8)
    # One pixel of `scale` is picked from memory: sums over pixels that lie apart would be no work for vectors, so a
    # compiler must not push this step into them, as it would with any other kind of view.
    height, width = (size // scale - 4 for size in windows.shape[1:3])
    picked = out.as_strided((len(out), height, width, channels), (*out.stride()[:2], channels * scale, 1))
    return picked.contiguous()


def imresize(images: Tensor, scale: int, rounding: Rounding = "uint8") -> Tensor:
    """MATLAB's `imresize(A, 1/scale, "bicubic")` of whole images of any size.

    Args:
        images: uint8 [N, H, W, C].
        scale: 2, 3, 4 or 8.
        rounding: see `downsample`.

    Returns:
        uint8 [N, ceil(H / scale), ceil(W / scale), C].
    """
    return downsample(with_margin(images, scale), scale, rounding)


def with_margin(images: Tensor, scale: int) -> Tensor:
    """Whole images as windows: extended symmetrically to a multiple of the scale, and by the margin on each side."""
    for axis in (1, 2):
        size = images.shape[axis]
        covered = -(-size // scale) * scale
        indices = symmetric_indices(-margin_of(scale), covered + margin_of(scale), size)
        images = images.index_select(axis, torch.from_numpy(indices).to(images.device))
    return images


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
    """The network's input: the LR images of both windows, blended.

    Args:
        hr: uint8 [N, scale*h + 4*scale, scale*w + 4*scale, 3], or None where `alpha` is 0 throughout.
        sr: the centroid's windows, of the same shape, or None where `alpha` is 1 throughout.
        alpha: float32 [] or [N], weight of `hr`, 0..1.
        scale: 2, 3, 4 or 8.
        rounding: see `downsample`.
        transposed: see `downsample`.
        dtype: of the result; the blend itself is float32, rounded once.

    Returns:
        dtype [N, 3, h, w] in 0..1, channels_last.
    """
    lr_of_hr, lr_of_sr = (
        None if windows is None else downsample(windows, scale, rounding, transposed) for windows in (hr, sr)
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


@torch.no_grad()
def lamb_step(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avg: list[Tensor],
    exp_avg_sq: list[Tensor],
    *,
    learning_rate: Tensor,
    skip: Tensor,
    step_count: Tensor | None = None,
    betas: tuple[float, float] = (0.9, 0.99),
    epsilon: float = 1e-6,
    weight_decay: float = 0.0,
    norm_clamp: float = 10.0,
    clip_value: float | None = None,
    inverse_scale: Tensor | None = None,
    average: list[Tensor] | None = None,
    average_decay: float = 0.999,
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
        learning_rate: float32 [].
        skip: bool []; set if a gradient is not finite. Where true nothing changes, whatever the gradients hold.
        step_count: int64 [], counts the updates that were made.
        betas: decay of m and v.
        epsilon: added to sqrt(v).
        weight_decay: decoupled from the moments, inside the trust ratio.
        norm_clamp: upper bound of |p|.
        clip_value: bound of each gradient element, or None.
        inverse_scale: float32 [], undoes a gradient scaler's factor.
        average: running average of the weights, same shapes; empty or None for none.
        average_decay: its decay.
    """  # noqa: D415 - the formula is the summary
    skip |= ~torch.stack([gradient.isfinite().all() for gradient in gradients]).all()
    if skip:
        return
    if step_count is not None:
        step_count += 1
    averages: list[Tensor] | list[None] = average or [None] * len(parameters)
    for p, gradient, m, v, mean in zip(parameters, gradients, exp_avg, exp_avg_sq, averages, strict=True):
        g = gradient if inverse_scale is None else gradient * inverse_scale
        if clip_value is not None:
            g = g.clamp(-clip_value, clip_value)
        m.mul_(betas[0]).add_(g, alpha=1 - betas[0])
        v.mul_(betas[1]).addcmul_(g, g, value=1 - betas[1])
        update = m / v.sqrt().add_(epsilon)
        if weight_decay:
            update.add_(p, alpha=weight_decay)
        weight_norm, update_norm = p.norm().clamp(max=norm_clamp), update.norm()
        trust = torch.where((weight_norm > 0) & (update_norm > 0), weight_norm / update_norm, 1.0)
        p.sub_(update.mul_(learning_rate * trust))
        if mean is not None:
            mean.lerp_(p, 1 - average_decay)


def _pass_rows(values: Tensor, scale: int) -> Tensor:
    """Weighted sums (before the division) of the rows [N, scale*h + 4*scale, ...]: [N, h, ...]."""
    first, reach = _first_tap(scale), values.shape[1] - 5 * scale + 1
    return _weighted(lambda tap: values[:, first + tap : first + tap + reach : scale], scale)


def _pass_columns(values: Tensor, scale: int, channels: int) -> Tensor:
    """The same of the columns of [N, H, (scale*w + 4*scale) * C], at every pixel: [N, H, (scale*w - scale + 1) * C]."""
    first, reach = _first_tap(scale), values.shape[2] // channels - 5 * scale + 1
    return _weighted(lambda tap: values[..., channels * (first + tap) : channels * (first + tap + reach)], scale)


def _first_tap(scale: int) -> int:
    return scale // 2 if scale % 2 == 0 else 2


def _weighted(values: Callable[[int], Tensor], scale: int) -> Tensor:
    """The sum of the stencil's weights times what is under its taps."""
    half, _ = STENCILS[scale]
    taps = 4 * scale if scale % 2 == 0 else 4 * scale - 1
    total = torch.zeros_like(values(0))
    for index, weight in enumerate(half):
        mirrored = taps - 1 - index
        total.add_(values(index) if mirrored == index else values(index) + values(mirrored), alpha=weight)
    return total


def _round(total: Tensor, scale: int, passes: int = 1) -> Tensor:
    """Divide by the stencil's denominator and round half up, as whole grey levels centred on 128, clipped."""
    _, denominator = STENCILS[scale]
    return (total / float(denominator**passes) + 0.5).floor().clamp(-128, 127)


def _blend(hr: Tensor, sr: Tensor, alpha: Tensor) -> Tensor:
    """The blend sr + alpha * (hr - sr) in float32, 0..255; this form returns hr and sr themselves at 1 and 0."""
    weight = alpha.view(-1, *[1] * (hr.ndim - 1)) if alpha.ndim else alpha
    real, centroid = hr.float(), sr.float()
    return centroid + weight * (real - centroid)


def _difference(prediction: Tensor, hr: Tensor | None, sr: Tensor | None, alpha: Tensor, margin: int) -> Tensor:
    """255 * prediction - target in float32, in grey levels: [N, H, W * C], so that a compiler sees rows long enough."""
    first, second = _present("blended_loss", hr, sr)
    samples, channels, height, width = prediction.shape
    expected = (samples, height + 2 * margin, width + 2 * margin, channels)
    if first.shape != expected:
        raise ValueError(
            f"blended_loss: a prediction of {tuple(prediction.shape)} (NCHW) and a margin of {margin} need windows of "
            f"{expected}, got {tuple(first.shape)}"
        )
    rows, values = slice(margin, margin + height), slice(channels * margin, channels * (margin + width))
    real, centroid = (windows.flatten(2)[:, rows, values] for windows in (first, second))
    target = _blend(real, centroid, alpha)
    return prediction.permute(0, 2, 3, 1).flatten(2).float() * 255 - target


def _present(op: str, hr: Tensor | None, sr: Tensor | None) -> tuple[Tensor, Tensor]:
    """Both images; an absent one (its weight is 0) is replaced by the other, which leaves the blend unchanged."""
    first, second = either(op, hr, sr), either(op, sr, hr)
    if first.shape != second.shape:
        raise ValueError(f"{op}: hr is {tuple(first.shape)} but sr is {tuple(second.shape)}")
    return first, second


def check_windows(op: str, windows: Tensor, scale: int, rounding: str, transposed: Tensor | None) -> None:
    """Refuse what no downsampling can take, with a ValueError."""
    if scale not in STENCILS:
        raise ValueError(f"{op}: the scale is one of {', '.join(map(str, STENCILS))}, got {scale}")
    if rounding not in ROUNDINGS:
        raise ValueError(f"{op}: the rounding is one of {', '.join(ROUNDINGS)}, got {rounding!r}")
    if windows.dtype != torch.uint8 or windows.ndim != 4:
        raise ValueError(f"{op}: expected uint8 [N, H, W, C], got {windows.dtype} {tuple(windows.shape)}")
    for size in windows.shape[1:3]:
        if size % scale or size < 5 * scale:
            raise ValueError(
                f"{op}: a window with its margin has scale * (n + 4) pixels a side (scale {scale}, n >= 1), "
                f"got {tuple(windows.shape)}"
            )
    if transposed is not None and windows.shape[1] != windows.shape[2]:
        raise ValueError(f"{op}: transposed samples need square windows, got {tuple(windows.shape)}")
