"""What policies read of a map: one score a patch or a position.

In plain torch they are a pooling and a convolution. On a CPU without gradients a native kernel reads the map once. In a
network that is executed sparsely each call of torch finds its code and data evicted from the caches and takes some 15
microseconds: :class:`ScoreReader` makes none.
"""

from __future__ import annotations

import ctypes
import threading
from math import prod
from typing import NamedTuple

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


class Scores(NamedTuple):
    """Scores in memory that this thread's next reading overwrites.

    Attributes:
        values: fp32, with room behind them.
        address: Of the values.
        shape: (B, 1, H', W').
        dtype: The map's type, which has these values.
    """

    values: ctypes.Array
    address: int
    shape: tuple[int, int, int, int]
    dtype: torch.dtype

    def listed(self) -> list[float]:
        """As numbers."""
        return self.values[: prod(self.shape)]

    def tensor(self) -> Tensor:
        """As a tensor of its own."""
        return torch.tensor(self.listed(), dtype=self.dtype).view(self.shape)


_local = threading.local()


class Linear(NamedTuple):
    """What a policy's scores are of a map: :func:`patch_scores`, or :func:`conv_scores`.

    Attributes:
        weight: As there.
        bias: (1,).
        patch: Of ``patch_scores``, 0 for one as large as the map; None: ``conv_scores``.
        pooled: Of ``conv_scores``.
        stride: Of ``conv_scores``.
    """

    weight: Tensor
    bias: Tensor
    patch: int | None = None
    pooled: Tensor | None = None
    stride: int = 1


class ScoreReader:
    """Reads scores by native kernels alone: weights are laid out once.

    Args:
        scores: What they are.
    """

    def __init__(self, scores: Linear) -> None:
        self._given, self._state = scores, _state(scores)
        self._laid_out = _lay_out(scores)  # lives as long as the pointers
        self._pointers = _addresses(self._laid_out)

    def current(self, scores: Linear) -> bool:
        """Whether that is what was laid out, and no weight has changed since."""
        return all(a is b for a, b in zip(scores, self._given, strict=True)) and _state(scores) == self._state

    def read(self, native: Kernels, x: Tensor) -> Scores:
        """The scores of ``x`` (B, C, H, W), channels-last and of the kernels' type."""
        batch, _, height, width = x.shape
        patch = self._given.patch
        step = self._given.stride if patch is None else patch or max(height, width)
        shape = (batch, 1, -(-height // step), -(-width // step))
        values, address = _room(prod(shape))
        _call(native, x, self._given, self._pointers, address)
        return Scores(values, address, shape, x.dtype)


def _state(scores: Linear) -> list[tuple[int, int]]:
    """Changes when a weight does."""
    tensors = (scores.weight, scores.bias, scores.pooled)
    return [(t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors if t is not None]


def _room(count: int) -> tuple[ctypes.Array, int]:
    """Memory of this thread for so many numbers, and its address."""
    kept = getattr(_local, 'kept', None)
    if kept is None or len(kept[0]) < count:
        array = (ctypes.c_float * count)()
        kept = _local.kept = array, ctypes.addressof(array)
    return kept


def _native(x: Tensor, *weights: Tensor | None) -> Kernels | None:
    return kernels_for(x, weights=weights) if x.is_contiguous(memory_format=torch.channels_last) else None


def _lay_out(scores: Linear) -> list[Tensor | None]:
    """Weight, weight of the means and bias as the kernels take them."""
    weight = scores.weight if scores.patch is not None else scores.weight.permute(0, 2, 3, 1)
    tensors = (weight, scores.pooled, scores.bias)
    return [None if t is None else t.float().contiguous() for t in tensors]


def _addresses(tensors: list[Tensor | None]) -> list[int | None]:
    return [None if t is None else t.data_ptr() for t in tensors]


def _call(native: Kernels, x: Tensor, scores: Linear, pointers: list[int | None], out: int) -> None:
    """Write the scores of ``x`` to the address ``out``."""
    batch, channels, height, width = x.shape
    weight, pooled, bias = pointers
    if scores.patch is None:
        how = (batch, height, width, channels, scores.weight.shape[-1], scores.stride)
        native.conv_scores(x.data_ptr(), *how, weight, pooled, bias, out)
    else:
        patch = scores.patch or max(height, width)
        native.patch_scores(x.data_ptr(), batch, height, width, channels, patch, weight, bias, out)


def _execute(x: Tensor, scores: Linear, out: Tensor) -> None:
    native = kernels(dtype=x.dtype)
    assert native is not None
    laid_out = _lay_out(scores)  # has to live as long as the kernel reads it
    _call(native, x, scores, _addresses(laid_out), out.data_ptr())


def _patch_scores(x: Tensor, weight: Tensor, bias: Tensor, patch: int, out: Tensor) -> None:
    _execute(x, Linear(weight, bias, patch), out)


def _conv_scores(x: Tensor, weight: Tensor, pooled: Tensor | None, bias: Tensor, stride: int, out: Tensor) -> None:
    _execute(x, Linear(weight, bias, None, pooled, stride), out)


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
