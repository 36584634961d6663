"""What policies read of a map: one score a patch or a position.

In plain torch they are a pooling and a convolution. On a CPU without gradients a native kernel reads the map once.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from eff_plugins.ops.library import register_in_place
from eff_plugins.ops.native import Kernels, kernels, kernels_for


def patch_scores(x: Tensor, weight: Tensor, bias: Tensor, patch: int) -> Tensor:
    """Mean of ``weight . x + bias`` over each patch: (B, C, H, W) -> (B, 1, ceil(H / patch), ceil(W / patch)).

    Args:
        x: (B, C, H, W).
        weight: (1, C), or (1, C, 1, 1) as of a convolution.
        bias: (1,).
        patch: Side in pixels; patches at the border may stand out of the map.
    """
    native = _native(x, weight, bias)
    if native is None:
        if patch > 1:
            x = F.avg_pool2d(x, patch, ceil_mode=True, count_include_pad=False)
        return F.conv2d(x, weight.view(1, -1, 1, 1), bias)
    batch, _, height, width = x.shape
    out = x.new_empty(batch, 1, -(-height // patch), -(-width // patch), dtype=torch.float32)
    if torch._C._len_torch_dispatch_stack():  # somebody counts
        torch.ops.eff_plugins.patch_scores(x, weight, bias, patch, out)
    else:
        _patch_scores(x, weight, bias, patch, out)
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def conv_scores(x: Tensor, weight: Tensor, pooled: Tensor | None, bias: Tensor, stride: int) -> Tensor:
    """A k x k convolution to one channel, plus a linear function of the channels' means: (B, C, H, W) -> (B, 1, H', W').

    Args:
        x: (B, C, H, W).
        weight: (1, C, k, k), k odd; the padding is k // 2.
        pooled: (1, C), of the means; None: the convolution alone.
        bias: (1,).
        stride: Of the convolution.
    """
    kernel = weight.shape[-1]
    if _native(x, weight, pooled, bias) is None:
        if pooled is None:
            return F.conv2d(x, weight, bias, stride, kernel // 2)
        return F.conv2d(x, weight, None, stride, kernel // 2) + F.linear(x.mean((2, 3)), pooled, bias)[:, :, None, None]
    size = ((n - 1) // stride + 1 for n in x.shape[2:])
    out = x.new_empty(x.shape[0], 1, *size, dtype=torch.float32)
    if torch._C._len_torch_dispatch_stack():
        torch.ops.eff_plugins.conv_scores(x, weight, pooled, bias, stride, out)
    else:
        _conv_scores(x, weight, pooled, bias, stride, out)
    return out if x.dtype == torch.float32 else out.to(x.dtype)


def _native(x: Tensor, *weights: Tensor | None) -> Kernels | None:
    return kernels_for(x, weights=weights) if x.is_contiguous(memory_format=torch.channels_last) else None


def _patch_scores(x: Tensor, weight: Tensor, bias: Tensor, patch: int, out: Tensor) -> None:
    batch, channels, height, width = x.shape
    native = kernels(dtype=x.dtype)
    assert native is not None
    flat, added = weight.float().contiguous(), bias.float()
    native.patch_scores(
        x.data_ptr(), batch, height, width, channels, patch, flat.data_ptr(), added.data_ptr(), out.data_ptr()
    )


def _conv_scores(x: Tensor, weight: Tensor, pooled: Tensor | None, bias: Tensor, stride: int, out: Tensor) -> None:
    batch, channels, height, width = x.shape
    native = kernels(dtype=x.dtype)
    assert native is not None
    taps, added = weight.float().permute(0, 2, 3, 1).contiguous(), bias.float()
    means = None if pooled is None else pooled.float().contiguous()
    native.conv_scores(
        x.data_ptr(),
        batch,
        height,
        width,
        channels,
        weight.shape[-1],
        stride,
        taps.data_ptr(),
        None if means is None else means.data_ptr(),
        added.data_ptr(),
        out.data_ptr(),
    )


register_in_place('patch_scores(Tensor x, Tensor weight, Tensor bias, int patch, Tensor(a!) out) -> ()', _patch_scores)
register_in_place(
    'conv_scores(Tensor x, Tensor weight, Tensor? pooled, Tensor bias, int stride, Tensor(a!) out) -> ()', _conv_scores
)


@register_flop_formula(torch.ops.eff_plugins.patch_scores)
def _patch_flops(x: torch.Size, weight: torch.Size, bias: torch.Size, patch: int, out: torch.Size, **_: object) -> int:
    """As for pooling, which is not counted, and a 1x1 convolution."""
    return 2 * out.numel() * weight.numel()


@register_flop_formula(torch.ops.eff_plugins.conv_scores)
def _conv_flops(
    x: torch.Size,
    weight: torch.Size,
    pooled: torch.Size | None,
    bias: torch.Size,
    stride: int,
    out: torch.Size,
    **_: object,
) -> int:
    return 2 * (out.numel() * weight.numel() + (0 if pooled is None else out[0] * pooled.numel()))
