"""From chosen patches to the rows that each convolution of a branch has to compute."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import addressof
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eff_plugins.ops.native import Kernels, kernels
from eff_plugins.ops.rows import RowConv, taps


def plan_rows(chosen: Tensor, patch: tuple[int, int], convs: Sequence[RowConv], size: tuple[int, int]) -> list[Tensor]:
    """Rows of each convolution of a chain, so that its last output is right in the chosen patches.

    Args:
        chosen: (B, 1, cells_y, cells_x) bool: the patches of the last output; the last ones may stand out of the map.
        patch: (height, width) of a patch in pixels of that output.
        convs: The chain, in order.
        size: (H, W) of the chain's input.

    Returns:
        One (R,) int32 list of positions a convolution; see :func:`eff_plugins.ops.rows.conv2d_rows`.
    """
    sizes = [size]
    for conv in convs:
        sizes.append(conv.out_size(*sizes[-1]))
    native = kernels() if chosen.device.type == 'cpu' else None
    rows = _patch_rows(native, chosen, patch, sizes[-1])
    plan = [rows]
    for conv, (height, width) in zip(reversed(convs[1:]), reversed(sizes[1:-1]), strict=True):
        if not conv.pointwise:
            rows = _needed_rows(native, conv, chosen.shape[0], rows, height, width)
        plan.append(rows)
    return plan[::-1]


def _patch_rows(native: Kernels | None, chosen: Tensor, patch: tuple[int, int], size: tuple[int, int]) -> Tensor:
    batch, _, cells_y, cells_x = chosen.shape
    if native is None:
        return spread(chosen, patch, size).flatten().nonzero().flatten().int()
    cells = chosen.contiguous().view(torch.uint8)
    rows = torch.empty(batch * size[0] * size[1], dtype=torch.int32)
    count = native.patch_rows(cells.data_ptr(), batch, cells_y, cells_x, *patch, *size, rows.data_ptr())
    return rows[:count]


def _needed_rows(
    native: Kernels | None, conv: RowConv, batch: int, rows: Tensor, height: int, width: int
) -> Tensor:
    if native is None:
        place, inside = taps(conv, rows.long(), height, width)
        return place[inside].unique().int()
    needed = torch.empty(batch * height * width, dtype=torch.int32)
    shape = addressof(conv.shape(height, width))
    count = native.needed_rows(shape, batch, rows.data_ptr(), rows.numel(), needed.data_ptr())
    return needed[:count]


def spread(cells: Tensor, patch: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Each cell over its patch: (B, 1, cells_y, cells_x) -> (B, 1, H, W); differentiable.

    Args:
        cells: Any type.
        patch: (height, width) of a patch in pixels.
        size: (H, W); the last patches may stand out of it.
    """
    if patch == (1, 1):
        return cells
    wide = cells.repeat_interleave(patch[0], 2).repeat_interleave(patch[1], 3)
    return wide[:, :, : size[0], : size[1]]


def spread_needed(mask: Tensor, conv: Any, size: tuple[int, int]) -> Tensor:
    """What ``conv`` reads of its input (B, 1, H, W) for the positions of its output that are on; differentiable.

    Args:
        mask: (B, 1, H', W') in {0, 1}, float.
        conv: Has ``kernel_size``, ``stride``, ``padding`` and ``dilation``, such as an ``nn.Conv2d``.
        size: (H, W).
    """
    batch, _, high, wide = mask.shape
    (sy, sx), (ky, kx), (py, px), (dy, dx) = conv.stride, conv.kernel_size, conv.padding, conv.dilation
    if (ky, kx, sy, sx, py, px) == (1, 1, 1, 1, 0, 0):
        return mask
    if (sy, sx) != (1, 1):
        loose = mask.new_zeros(batch, 1, (high - 1) * sy + 1, (wide - 1) * sx + 1)
        loose[:, :, ::sy, ::sx] = mask
        mask = loose
    # position i is read if output j is on with i = j - padding + tap * dilation
    top, left = (ky - 1) * dy - py, (kx - 1) * dx - px
    bottom = size[0] + (ky - 1) * dy - top - mask.shape[2]
    right = size[1] + (kx - 1) * dx - left - mask.shape[3]
    padded = F.pad(mask, (left, right, top, bottom))
    return F.max_pool2d(padded, (ky, kx), 1, 0, (dy, dx))
