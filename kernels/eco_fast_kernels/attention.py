"""Attention in windows of images, in plain torch: the definition that the kernels of `fused` meet.

    out = softmax(q k' / sqrt(d) + bias + mask) v        for each window and head, with d channels of a head

The windows' grid begins at (shift, shift) and goes on at the other side of the image, as if the image had been rolled.
Source: Liu et al., ICCV 2021 (Swin Transformer).
"""

import torch
from torch import Tensor

from eco_fast_kernels.checks import MOST_CHANNELS_OF_A_HEAD, WINDOWS

MASKED = -100.0  # added to the score of two tokens that the cyclic shift has made neighbours


def window_attention(qkv: Tensor, qkv_bias: Tensor, table: Tensor, window: int, shift: int) -> Tensor:
    """Multi-head self-attention within each window, with a learned bias for each relative position.

    Args:
        qkv: floating point [N, h, w, 3*C]: queries, keys, values, each of its heads in turn, without their bias; h and
            w are multiples of the window.
        qkv_bias: floating point [3*C], added to them.
        table: floating point [(2*window - 1)**2, heads]: the bias of two tokens, (query's row - key's row + window - 1)
            * (2*window - 1) + query's column - key's column + window - 1.
        window: side of a window.
        shift: of the windows' grid against the image's, 0 <= shift < window.

    Returns:
        [N, h, w, C], in the dtype of `qkv`.
    """
    samples, height, width, channels = qkv.shape
    heads, tokens = table.shape[1], window**2
    places = _places(height, width, window, shift, qkv.device)
    of_windows = (qkv + qkv_bias.to(qkv.dtype)).flatten(1, 2)[:, places]  # [N, windows, T, 3*C]
    q, k, v = of_windows.view(samples, -1, tokens, 3, heads, channels // 3 // heads).permute(3, 0, 1, 4, 2, 5)
    bias = table[relative_positions(window, qkv.device)].permute(2, 0, 1).to(qkv.dtype)  # [heads, T, T]
    scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
    if shift:
        region = _regions(height, width, shift, qkv.device).flatten()[places]
        apart = region[:, :, None] != region[:, None]
        scores = scores + MASKED * apart[:, None].to(qkv.dtype)
    attended = (scores.softmax(-1) @ v).transpose(2, 3).reshape(samples, -1, tokens, channels // 3)
    out = torch.empty_like(attended).flatten(1, 2).index_copy(1, places.flatten(), attended.flatten(1, 2))
    return out.view(samples, height, width, channels // 3)


def _places(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor:
    """Number in the image of each window's tokens: int64 [windows, T]."""
    number = torch.arange(height * width, device=device).view(height, width).roll((-shift, -shift), (0, 1))
    return number.unfold(0, window, window).unfold(1, window, window).reshape(-1, window**2)


def relative_positions(window: int, device: torch.device | None = None) -> Tensor:
    """Row of the table for each pair of tokens: int64 [T, T]."""
    token = torch.arange(window**2, device=device)
    rows, columns = (side[:, None] - side[None] + window - 1 for side in (token // window, token % window))
    return rows * (2 * window - 1) + columns


def _regions(height: int, width: int, shift: int, device: torch.device) -> Tensor:
    """Parts of an image that no window joins, by number: int64 [h, w]; windows meet those at its edges."""
    row, column = (torch.arange(size, device=device) < shift for size in (height, width))
    return 2 * row.long()[:, None] + column.long()


def takes_windows(qkv: Tensor, heads: int, window: int) -> bool:
    """Whether there are kernels for such windows and heads on the tensor's device; others are `ValueError`s there.

    Args:
        qkv: [N, h, w, 3*C], in what is computed in.
        heads: of the attention.
        window: side of a window.
    """
    if not qkv.is_cuda:
        return True
    tensor_cores = has_tensor_cores(torch.cuda.get_device_capability(qkv.device), qkv.dtype)
    return fits(window, qkv.shape[3] // 3 // heads, tensor_cores=tensor_cores)


def has_tensor_cores(capability: tuple[int, int], dtype: torch.dtype) -> bool:
    """Whether the kernels use tensor cores: Triton has left sm_75's alone since 3.3."""
    return capability >= (8, 0) and (dtype != torch.float32 or torch.backends.cuda.matmul.allow_tf32)


def fits(window: int, channels: int, *, tensor_cores: bool) -> bool:
    """Whether a window and a head's channels fit: without tensor cores operands lie in registers as a whole."""
    known = window in WINDOWS and channels <= MOST_CHANNELS_OF_A_HEAD
    return known and (tensor_cores or channels <= 256 // window)
