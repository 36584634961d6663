"""Operators on pools of blocks (``eff_plugins.ops.dual``): convolution with bias, residual and activation, and max pooling.

The reference fills the blocks' borders and calls torch's operators on them: differentiable, any device and type. On a CPU
without gradients a native kernel reads neighbours where they lie in the pool, so that nothing is copied or padded, packs
weights once, and does activation and sum while the results are in registers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import register_flop_formula
from torch.utils.weak import WeakTensorKeyDictionary

from eff_plugins.ops.dense import ACTIVATIONS
from eff_plugins.ops.dual import DualGrid, Gather, Group, Window, pool_of, rows_of
from eff_plugins.ops.dual_tables import Codes
from eff_plugins.ops.library import register_in_place
from eff_plugins.ops.native import Kernels, kernels, kernels_for
from eff_plugins.ops.rows import ACTIVATIONS as NATIVE_ACTIVATIONS
from eff_plugins.ops.rows import RowConv

Pair = tuple[int, int]


@dataclass(frozen=True)
class Borders:
    """What an operator reads of a pool: the pool's layout, its level and the operator's geometry."""

    grid: DualGrid
    level: int
    window: Window

    def gathers(self) -> list[Gather]:
        """For torch's operators."""
        return self.grid.gathers(self.level, self.window)

    def codes(self, native: Kernels) -> list[Codes]:
        """For the native kernels."""
        return self.grid.tables.codes(self.level, self.window, native)


def conv_blocks(
    pool: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    borders: Borders | None,
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
        borders: What is read; None for a 1x1 convolution of stride 1.
        dilation: (vertical, horizontal).
        groups: Of the convolution.
        act: A key of ``eff_plugins.ops.dense.ACTIVATIONS``.
        residual: (1, N, 1, P') or None.
    """
    native = kernels_for(pool, residual, weights=(weight, bias)) if _serves(weight, groups, act) else None
    stride = 1 if borders is None else borders.window.stride
    if native is not None:
        codes = None if borders is None else borders.codes(native)
        out = _empty(pool, codes, len(weight))
        _run(pool, weight, bias, residual, codes, stride, dilation, groups, act, False, out, 0)
        return pool_of(out)
    if borders is None:
        y = F.conv2d(pool, weight, bias, groups=groups)
    else:
        y = join(F.conv2d(gather(pool), weight, bias, stride, 0, dilation, groups) for gather in borders.gathers())
    return ACTIVATIONS[act](y if residual is None else y + residual)


def conv_picture(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    grid: DualGrid,
    window: Window,
    dilation: Pair = (1, 1),
    groups: int = 1,
    act: str | None = None,
) -> Tensor:
    """The first layer: a convolution of the picture, read in the resolution of each block: (B, C, H, W) -> pool.

    Beyond a block's edge lies the picture itself, in the block's own resolution.
    """
    half, stride = grid.half(x), window.stride
    served = groups == 1 and act in NATIVE_ACTIVATIONS and dilation == (1, 1)
    native = kernels_for(x, weights=(weight, bias)) if served else None
    if native is None:
        blocks = (grid.windows(half if group.low else x, group, 0, window, 0.0) for group in grid.groups)
        return ACTIVATIONS[act](join(F.conv2d(block, weight, bias, stride, 0, dilation, groups) for block in blocks))
    out = x.new_empty(grid.count(stride.bit_length() - 1), len(weight))
    first = 0
    for low in (False, True):
        chosen = [group for group in grid.groups if group.low == low]
        if chosen:
            pool, codes = _picture_codes(half if low else x, grid, chosen, window)
            _run(pool, weight, bias, None, codes, stride, dilation, groups, act, True, out, first)
            first += sum(n * h * w for n, _, _, h, w in (code.sizes for code in codes))
    return pool_of(out)


def _picture_codes(x: Tensor, grid: DualGrid, groups: Sequence[Group], window: Window) -> tuple[Tensor, list[Codes]]:
    """The picture, padded, as a pool of its pixels, and where each block's outputs find the first of a row of taps."""
    low, (rows, columns) = groups[0].low, grid.cells
    side, (top, left) = grid.side(0, low), window.before(grid.map_size(0, low))
    level = window.stride.bit_length() - 1
    shapes = [grid.block_shape(group, level) for group in groups]
    reads = [window.reads(*shape) for shape in shapes]
    below = max((rows - 1) * side + max(high for high, _ in reads) - top - x.shape[2], 0)
    right = max((columns - 1) * side + max(wide for _, wide in reads) - left - x.shape[3], 0)
    padded = F.pad(x, (left, right, top, below)).permute(0, 2, 3, 1).contiguous()
    height, width, channels = padded.shape[1:]
    codes = []
    for group, shape, (high, wide) in zip(groups, shapes, reads, strict=True):
        sample, i, j = group.cells.unbind(1)
        corner = ((sample * height + i * side) * width + j * side).to(torch.int32)
        inside = torch.arange(high, dtype=torch.int32)[:, None] * width + torch.arange(wide, dtype=torch.int32)
        entries = (corner[:, None, None] + inside).flatten()
        codes.append(Codes(entries, entries[:0], (len(corner), high, wide, *shape)))
    return pool_of(padded.view(-1, channels)), codes


def max_pool_blocks(pool: Tensor, kernel: Pair, dilation: Pair, borders: Borders) -> Tensor:
    """Max pooling: pool (1, C, 1, P) -> pool (1, C, 1, P'); what lies outside of the picture counts for nothing.

    Args:
        pool: Pixels in blocks.
        kernel: (height, width).
        dilation: (vertical, horizontal).
        borders: What is read.
    """
    native, stride = kernels_for(pool), borders.window.stride
    if native is None:
        lowest = float('-inf')
        gathers = borders.gathers()
        return join(F.max_pool2d(gather(pool, lowest), kernel, stride, 0, dilation) for gather in gathers)
    pixels = rows_of(pool).contiguous()
    channels = pixels.shape[1]
    shape = _shape(channels, channels, kernel, stride, dilation, None)
    codes = borders.codes(native)
    out, first = _empty(pool, codes, channels), 0
    for code in codes:
        size = (ctypes.c_int64 * 8)(*code.sizes, code.quads.numel() // 4, *pixels.shape)
        native.max_blocks(
            ctypes.addressof(shape),
            ctypes.addressof(size),
            code.entries.data_ptr(),
            code.quads.data_ptr(),
            pixels.data_ptr(),
            out.data_ptr() + out.element_size() * first * channels,
        )
        first += size[0] * size[3] * size[4]
    return pool_of(out)


def join(blocks: Any) -> Tensor:
    """Blocks (n, C, h, w) of each group, in order -> their pool (1, C, 1, P)."""
    rows = [block.permute(0, 2, 3, 1).reshape(-1, block.shape[1]) for block in blocks]
    return pool_of(rows[0] if len(rows) == 1 else torch.cat(rows))


def _serves(weight: Tensor, groups: int, act: str | None) -> bool:
    """Whether the native kernel knows such a convolution: one group, or one filter a channel."""
    return (groups == 1 or (groups == len(weight) and weight.shape[1] == 1)) and act in NATIVE_ACTIVATIONS


def _shape(
    channels: int, filters: int, kernel: Sequence[int], stride: int, dilation: Sequence[int], act: str | None
) -> ctypes.Array:
    """The ``Shape`` of native/shape.h; sizes of maps and padding have no meaning in blocks."""
    number = list(NATIVE_ACTIVATIONS).index(act)
    return (ctypes.c_int64 * 15)(0, 0, channels, 0, 0, filters, *kernel, stride, stride, 0, 0, *dilation, number)


def _empty(pool: Tensor, codes: Sequence[Codes] | None, channels: int) -> Tensor:
    """The pixels (P', channels) of an output."""
    if codes is None:
        return pool.new_empty(pool.shape[3], channels)
    return pool.new_empty(sum(n * h * w for n, _, _, h, w in (code.sizes for code in codes)), channels)


def _version(tensor: Tensor) -> int:
    """Counts changes in place; inference tensors have no such number."""
    return 0 if tensor.is_inference() else tensor._version


_packed: WeakTensorKeyDictionary = WeakTensorKeyDictionary()


def forget_packed(module: nn.Module) -> None:
    """Pack the weights of ``module`` anew at the next call: they may have changed behind autograd's back."""
    for parameter in module.parameters():
        _packed.pop(parameter, None)


def _pack(native: Kernels, weight: Tensor, bias: Tensor | None, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """Weight, bias and zeros as the kernel takes them, made once for each state of the weights."""
    state = (
        _version(weight),
        weight.data_ptr(),
        None if bias is None else (_version(bias), bias.data_ptr()),
        native.name,
    )
    found = _packed.get(weight)
    if found is None or found[0] != state:
        added = weight.new_zeros(len(weight)) if bias is None else bias.detach()
        found = (state, RowConv(weight.detach(), added, groups=groups).packed(native))
        _packed[weight] = found
    return found[1]


def _run(
    pool: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    codes: Sequence[Codes] | None,
    stride: int,
    dilation: Pair,
    groups: int,
    act: str | None,
    picture: bool,
    out: Tensor,
    first: int,
) -> None:
    """Call the native kernel; through torch's dispatcher where somebody watches (a counter of multiply-adds)."""
    sizes = [pool.shape[3], 1, 1, 1, 1] if codes is None else [n for code in codes for n in code.sizes]
    entries = [] if codes is None else [code.entries for code in codes]
    quads = [] if codes is None else [code.quads for code in codes]
    arguments = (pool, weight, bias, residual, entries, quads, sizes, stride, list(dilation), groups, act, picture)
    watched = bool(torch._C._len_torch_dispatch_stack())
    (torch.ops.eff_plugins.conv2d_blocks if watched else _convolve)(*arguments, out, first)


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
    picture: bool,
    out: Tensor,
    first: int,
) -> None:
    """Write pixels of ``out`` (P', N) from ``first`` on."""
    native = kernels(dtype=pool.dtype)
    assert native is not None  # whoever calls has asked
    kernel, added, zeros = _pack(native, weight, bias, groups)
    pixels = rows_of(pool).contiguous()
    (count, channels), (filters, _, *size) = pixels.shape, weight.shape
    if picture:  # the pixels of a row of taps are neighbours in memory: one tap of so many channels
        shape = _shape(channels * size[1], filters, (size[0], 1), stride, dilation, act)
    else:
        shape = _shape(channels, filters, size, stride, dilation, act)
    rest = None if residual is None else rows_of(residual).contiguous()
    for i in range(len(sizes) // 5):
        means = quads[i].numel() // 4 if quads else 0
        block = (ctypes.c_int64 * 8)(*sizes[5 * i : 5 * i + 5], means, count, channels)
        shift = out.element_size() * first * filters
        native.convolve_blocks(
            ctypes.addressof(shape),
            int(groups > 1),
            ctypes.addressof(block),
            codes[i].data_ptr() if codes else None,
            quads[i].data_ptr() if quads else None,
            pixels.data_ptr(),
            zeros.data_ptr(),
            kernel.data_ptr(),
            added.data_ptr(),
            None if rest is None else rest.data_ptr() + shift,
            out.data_ptr() + shift,
        )
        first += block[0] * block[3] * block[4]


register_in_place(
    'conv2d_blocks(Tensor pool, Tensor weight, Tensor? bias, Tensor? residual, Tensor[] codes, Tensor[] quads, int[] sizes, '
    'int stride, int[] dilation, int groups, str? act, bool picture, Tensor(a!) out, int first) -> ()',
    _convolve,
)


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
