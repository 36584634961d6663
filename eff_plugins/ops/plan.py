"""From chosen patches to the rows that each convolution of a branch has to compute."""

from __future__ import annotations

from collections.abc import Sequence
from ctypes import Array, addressof, c_int64
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from eff_plugins.ops.native import Kernels, kernels, kernels_for
from eff_plugins.ops.rows import RowConv, taps


class Chain:
    """Convolutions one after the other, for :func:`plan_rows`.

    Args:
        convs: In order.
    """

    def __init__(self, convs: Sequence[RowConv]) -> None:
        self.convs = list(convs)
        self._sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}
        self._shapes: dict[tuple[int, int], Array] = {}

    def sizes(self, size: tuple[int, int]) -> list[tuple[int, int]]:
        """(H, W) of the input and of each convolution's output."""
        if size not in self._sizes:
            sizes = [size]
            for conv in self.convs:
                sizes.append(conv.out_size(*sizes[-1]))
            self._sizes[size] = sizes
        return self._sizes[size]

    def shapes(self, size: tuple[int, int]) -> Array:
        """The ``Shape`` of native/shape.h of each convolution, one after the other."""
        if size not in self._shapes:
            numbers = [n for conv, s in zip(self.convs, self.sizes(size), strict=False) for n in conv.shape(*s)]
            self._shapes[size] = (c_int64 * len(numbers))(*numbers)
        return self._shapes[size]


def plan_rows(chosen: Tensor, patch: tuple[int, int], chain: Chain, size: tuple[int, int]) -> list[Tensor]:
    """Rows of each convolution of a chain, so that its last output is right in the chosen patches.

    Args:
        chosen: (B, 1, cells_y, cells_x) bool: the patches of the last output; the last ones may stand out of the map.
        patch: (height, width) of a patch in pixels of that output.
        chain: The convolutions.
        size: (H, W) of the chain's input.

    Returns:
        One (R,) int32 list of positions a convolution; see :func:`eff_plugins.ops.rows.conv2d_rows`.

    Raises:
        TypeError: ``chosen`` is not bool.
    """
    if chosen.dtype != torch.bool:
        raise TypeError(f'chosen is {chosen.dtype}; it must be bool')
    sizes = chain.sizes(size)
    native = kernels() if chosen.device.type == 'cpu' else None
    if native is not None:
        return _native_plan(native, chosen, patch, chain, sizes)
    rows = spread(chosen, patch, sizes[-1]).flatten().nonzero().flatten().int()
    plan = [rows]
    for conv, (height, width) in zip(reversed(chain.convs[1:]), reversed(sizes[1:-1]), strict=True):
        if not conv.pointwise:
            place, inside = taps(conv, rows.long(), height, width)
            rows = place[inside].unique().int()
        plan.append(rows)
    return plan[::-1]


def _native_plan(
    native: Kernels, chosen: Tensor, patch: tuple[int, int], chain: Chain, sizes: list[tuple[int, int]]
) -> list[Tensor]:
    batch, _, cells_y, cells_x = chosen.shape
    cells = chosen.contiguous()  # has to live as long as the kernel reads it
    layers = len(chain.convs)
    places = [batch * height * width for height, width in sizes[1:]]
    rows = torch.empty(sum(places), dtype=torch.int32, device='cpu')
    counts = (c_int64 * layers)()
    native.plan_rows(
        cells.data_ptr(),
        batch,
        cells_y,
        cells_x,
        *patch,
        addressof(chain.shapes(sizes[0])),
        layers,
        rows.data_ptr(),
        addressof(counts),
    )
    plan: list[Tensor] = []
    end = len(rows)
    for count, place in zip(reversed(counts), reversed(places), strict=True):
        end -= place
        plan.append(plan[-1] if count < 0 else rows[end : end + count])
    return plan[::-1]


def rows_above(values: Tensor, threshold: float) -> Tensor:
    """The positions whose value is above ``threshold``, in order: (B, 1, H, W) -> (R,) int32.

    Args:
        values: Of any floating type.
        threshold: As far as that type can tell.
    """
    native = kernels_for(values) if values.dtype == torch.float32 else None
    if native is None:
        return (values > threshold).flatten().nonzero().flatten().int()
    values = values.contiguous()  # has to live as long as the kernel reads it
    rows = torch.empty(values.numel(), dtype=torch.int32, device='cpu')
    return rows[: native.rows_above(values.data_ptr(), values.numel(), threshold, rows.data_ptr())]


def other_rows(rows: Tensor, total: int) -> Tensor:
    """The positions below ``total`` that ``rows`` (R,) int32 does not list, in order: (total - R,) int32."""
    native = kernels() if rows.device.type == 'cpu' else None
    if native is None:
        listed = torch.zeros(total, dtype=torch.bool, device=rows.device)
        listed[rows.long()] = True
        return (~listed).nonzero().flatten().int()
    others = rows.new_empty(total)
    return others[: native.other_rows(rows.data_ptr(), rows.numel(), total, others.data_ptr())]


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
