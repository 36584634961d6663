"""Operators on pools of blocks (``eff_plugins.ops.dual``): convolution with bias, residual and activation, and max pooling.

The reference fills the blocks' borders and calls torch's operators on them: differentiable, any device and type. On a CPU
without gradients a native kernel reads neighbours where they lie in the pool, so that nothing is copied or padded, packs
weights once, and does activation and sum while the results are in registers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula
from torch.utils.weak import WeakTensorKeyDictionary

from eff_plugins.ops.dense import ACTIVATIONS
from eff_plugins.ops.dual import Gather, pool_of, rows_of
from eff_plugins.ops.native import Kernels, kernels
from eff_plugins.ops.rows import ACTIVATIONS as NATIVE_ACTIVATIONS
from eff_plugins.ops.rows import RowConv

Pair = tuple[int, int]


def conv_blocks(
    pool: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    gathers: Sequence[Gather] | None,
    stride: int = 1,
    dilation: Pair = (1, 1),
    groups: int = 1,
    act: str | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """``act(conv(pool) + residual)``: pool (1, C, 1, P) -> pool (1, N, 1, P').

    Args:
        pool: Pixels in blocks.
        weight: (N, C / groups, kh, kw).
        bias: (N,) or None.
        gathers: The borders that each group of blocks reads; None for a 1x1 convolution of stride 1.
        stride: The same both ways.
        dilation: (vertical, horizontal).
        groups: Of the convolution.
        act: A key of ``eff_plugins.ops.dense.ACTIVATIONS``.
        residual: (1, N, 1, P') or None.
    """
    depthwise = groups > 1 and groups == weight.shape[0] and weight.shape[1] == 1
    native = _native(pool, weight, bias, residual) if groups == 1 or depthwise else None
    if native is not None and act in NATIVE_ACTIVATIONS:
        codes, quads, sizes = _tables(gathers, pool.shape[3], weight.shape[2:], stride, dilation)
        arguments = (pool, weight, bias, residual, codes, quads, sizes, stride, list(dilation), groups, act)
        # the way through torch's dispatcher is taken where somebody counts
        watched = bool(torch._C._len_torch_dispatch_stack())
        return torch.ops.eff_plugins.conv2d_blocks(*arguments) if watched else _convolve(*arguments)
    if gathers is None:
        y = F.conv2d(pool, weight, bias, groups=groups)
    else:
        y = join(F.conv2d(gather(pool), weight, bias, stride, 0, dilation, groups) for gather in gathers)
    return ACTIVATIONS[act](y if residual is None else y + residual)


def max_pool_blocks(pool: Tensor, kernel: Pair, stride: int, dilation: Pair, gathers: Sequence[Gather]) -> Tensor:
    """Max pooling: pool (1, C, 1, P) -> pool (1, C, 1, P'); what lies outside of the picture counts for nothing.

    Args:
        pool: Pixels in blocks.
        kernel: (height, width).
        stride: The same both ways.
        dilation: (vertical, horizontal).
        gathers: The borders that each group of blocks reads.
    """
    native = _native(pool)
    if native is None:
        lowest = float('-inf')
        return join(F.max_pool2d(gather(pool, lowest), kernel, stride, 0, dilation) for gather in gathers)
    codes, quads, sizes = _tables(gathers, pool.shape[3], kernel, stride, dilation)
    pixels = rows_of(pool).contiguous()
    channels = pixels.shape[1]
    shape = _shape(channels, channels, kernel, stride, dilation, None)
    out, at = _empty(pixels, sizes, channels)
    for i, code in enumerate(codes):
        means = _means(native, pixels, quads[i])
        size = (ctypes.c_int64 * 5)(*sizes[5 * i : 5 * i + 5])
        native.max_blocks(
            ctypes.addressof(shape),
            ctypes.addressof(size),
            code.data_ptr(),
            pixels.data_ptr(),
            len(pixels),
            means.data_ptr(),
            out[at[i] :].data_ptr(),
        )
    return pool_of(out)


def join(blocks: Any) -> Tensor:
    """Blocks (n, C, h, w) of each group, in order -> their pool (1, C, 1, P)."""
    rows = [block.permute(0, 2, 3, 1).reshape(-1, block.shape[1]) for block in blocks]
    return pool_of(rows[0] if len(rows) == 1 else torch.cat(rows))


def _native(*tensors: Tensor | None) -> Kernels | None:
    """The native kernels where they serve: fp32 on a CPU, no gradients."""
    given = [t for t in tensors if t is not None]
    fits = all(t.device.type == 'cpu' and t.dtype == torch.float32 for t in given)
    if not fits or (torch.is_grad_enabled() and any(t.requires_grad for t in given)):
        return None
    return kernels()


def _tables(
    gathers: Sequence[Gather] | None, count: int, kernel: Sequence[int], stride: int, dilation: Pair
) -> tuple[list[Tensor], list[Tensor], list[int]]:
    """Codes and quads of each group, and five sizes a group: n, block with borders, block of outputs."""
    if gathers is None:
        return [], [], [count, 1, 1, 1, 1]
    sizes: list[int] = []
    for gather in gathers:
        n, *block = gather.shape
        spread = [(k - 1) * d + 1 for k, d in zip(kernel, dilation, strict=True)]
        sizes += [n, *block, *((size - k) // stride + 1 for size, k in zip(block, spread, strict=True))]
    return [gather.codes(count) for gather in gathers], [gather.quads for gather in gathers], sizes


def _shape(
    channels: int, filters: int, kernel: Sequence[int], stride: int, dilation: Sequence[int], act: str | None
) -> ctypes.Array:
    """The ``Shape`` of native/rows.cpp; sizes of maps and padding have no meaning in blocks."""
    number = list(NATIVE_ACTIVATIONS).index(act)
    return (ctypes.c_int64 * 15)(0, 0, channels, 0, 0, filters, *kernel, stride, stride, 0, 0, *dilation, number)


def _empty(pixels: Tensor, sizes: Sequence[int], channels: int) -> tuple[Tensor, list[int]]:
    """An output for all groups, and where each begins."""
    counts = [n * h * w for n, h, w in zip(sizes[0::5], sizes[3::5], sizes[4::5], strict=True)]
    starts = [sum(counts[:i]) for i in range(len(counts))]
    return pixels.new_empty(sum(counts), channels), starts


def _means(native: Kernels, pixels: Tensor, quads: Tensor) -> Tensor:
    """What a group reads of finer neighbours."""
    means = pixels.new_empty(len(quads) // 4, pixels.shape[1])
    if len(means):
        native.mean_blocks(pixels.data_ptr(), pixels.shape[1], quads.data_ptr(), len(means), means.data_ptr())
    return means


_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def _pack(native: Kernels, weight: Tensor, bias: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and zeros as the kernel takes them, made once for each state of the weights."""
    state = (weight._version, weight.data_ptr(), None if bias is None else (bias._version, bias.data_ptr()), native.name)
    found = _packed.get(weight)
    if found is None or found[0] != state:
        added = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        found = (state, RowConv(weight.detach(), added, groups=groups).packed(native))
        _packed[weight] = found
    return found[1]


_library = torch.library.Library('eff_plugins', 'FRAGMENT')
_library.define(
    'conv2d_blocks(Tensor pool, Tensor weight, Tensor? bias, Tensor? residual, Tensor[] codes, Tensor[] quads, int[] sizes, '
    'int stride, int[] dilation, int groups, str? act) -> Tensor'
)


def _convolve(
    pool: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    codes: list[Tensor],
    quads: list[Tensor],
    sizes: list[int],
    stride: int,
    dilation: list[int],
    groups: int,
    act: str | None,
) -> Tensor:
    native = kernels()
    assert native is not None  # conv_blocks has asked
    kernel, added, zeros = _pack(native, weight, bias, groups)
    pixels = rows_of(pool).contiguous()
    shape = _shape(pixels.shape[1], weight.shape[0], weight.shape[2:], stride, dilation, act)
    out, at = _empty(pixels, sizes, weight.shape[0])
    rest = None if residual is None else rows_of(residual).contiguous()
    for i in range(len(at)):
        means = _means(native, pixels, quads[i]) if quads else None
        size = (ctypes.c_int64 * 5)(*sizes[5 * i : 5 * i + 5])
        native.convolve_blocks(
            ctypes.addressof(shape),
            int(groups > 1),
            ctypes.addressof(size),
            codes[i].data_ptr() if codes else None,
            pixels.data_ptr(),
            len(pixels),
            None if means is None else means.data_ptr(),
            zeros.data_ptr(),
            kernel.data_ptr(),
            added.data_ptr(),
            None if rest is None else rest[at[i] :].data_ptr(),
            out[at[i] :].data_ptr(),
        )
    return pool_of(out)


_library.impl('conv2d_blocks', _convolve, 'CompositeExplicitAutograd')


@register_flop_formula(torch.ops.eff_plugins.conv2d_blocks)
def _flops(
    pool: torch.Size,
    weight: torch.Size,
    bias: Any,
    residual: Any,
    codes: Any,
    quads: Any,
    sizes: Sequence[int],
    *_: object,
    **__: object,
) -> int:
    """Two a multiply-add, as torch's counter counts."""
    outputs = sum(n * h * w for n, h, w in zip(sizes[0::5], sizes[3::5], sizes[4::5], strict=True))
    return 2 * outputs * weight.numel()
