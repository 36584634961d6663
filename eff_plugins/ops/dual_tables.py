"""Index tables of ``eff_plugins.ops.dual`` for the native kernels: made by one, once for each level and geometry."""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass
from itertools import accumulate
from operator import mul
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from eff_plugins.ops.native import Kernels

if TYPE_CHECKING:
    from eff_plugins.ops.dual import DualGrid, Window


@dataclass(frozen=True)
class Codes:
    """What :class:`eff_plugins.ops.dual.Gather` holds, for the native kernels.

    Attributes:
        entries: (n * height * width,) int32: position in the pool, -1 outside, from P on the k-th average.
        quads: (averages * 4,) int32 positions in the pool.
        sizes: n, size of a block with borders, size of a block of outputs.
    """

    entries: Tensor
    quads: Tensor
    sizes: tuple[int, int, int, int, int]


class Tables:
    """The tables of one decision, on the CPU.

    Args:
        grid: The decision.
    """

    def __init__(self, grid: DualGrid) -> None:
        # the grid keeps its tables: a cycle would keep both until garbage is collected
        self.grid: DualGrid = weakref.proxy(grid)
        self._high = grid.high.to(torch.uint8).contiguous()
        self._cells = [group.cells.contiguous() for group in grid.groups]
        # of each block: its group, and how many of that come before it
        self._group, self._rank = torch.empty(2, *grid.high.shape, dtype=torch.int64, device='cpu')
        for number, cells in enumerate(self._cells):
            sample, i, j = cells.unbind(1)
            self._group[sample, i, j] = number
            self._rank[sample, i, j] = torch.arange(cells.shape[0], device='cpu')
        self._levels: dict[int, tuple[ctypes.Array, Tensor, int]] = {}
        self._codes: dict[tuple[int, Window], list[Codes]] = {}

    def _level(self, level: int) -> tuple[ctypes.Array, Tensor, int]:
        """The ``Grid`` of native/blocks.cpp, (B, gh, gw) first position of each block in the pool, pixels in the pool."""
        if level not in self._levels:
            grid = self.grid
            sizes = (ctypes.c_int64 * 5)(*grid.cells, grid.side(level, False), *grid.map_size(level))
            areas = grid.areas(level)
            *begins, count = accumulate(map(mul, areas, (group.count for group in grid.groups)), initial=0)
            first, area = torch.tensor([begins, areas], device='cpu')
            starts = first[self._group] + area[self._group] * self._rank
            self._levels[level] = sizes, starts, count
        return self._levels[level]

    def codes(self, level: int, window: Window, native: Kernels) -> list[Codes]:
        """What an operator reads of the pool at stride ``2 ** level``: one for each group."""
        if (level, window) not in self._codes:
            self._codes[level, window] = self._make(level, window, native)
        return self._codes[level, window]

    def _make(self, level: int, window: Window, native: Kernels) -> list[Codes]:
        grid, found = self.grid, []
        sizes, starts, pixels = self._level(level)
        outs = grid.shapes(level + window.stride.bit_length() - 1)
        before = [window.before(grid.map_size(level, low)) for low in (False, True)]
        for group, cells, out in zip(grid.groups, self._cells, outs, strict=True):
            block, count = window.reads(*out), group.count
            length = count * block[0] * block[1]
            entries = torch.empty(length, dtype=torch.int32, device='cpu')
            quads = torch.empty(4 * length if group.low else 0, dtype=torch.int32, device='cpu')
            means = native.block_codes(
                ctypes.addressof(sizes),
                self._high.data_ptr(),
                starts.data_ptr(),
                int(group.low),
                cells.data_ptr(),
                count,
                *before[group.low],
                *block,
                pixels,
                entries.data_ptr(),
                quads.data_ptr(),
            )
            found.append(Codes(entries, quads[: 4 * means] if group.low else quads, (count, *block, *out)))
        return found

    def combine(self, native: Kernels, pixels: Tensor, level: int) -> Tensor:
        """Pixels (P, C) of a pool at stride ``2 ** level`` -> the whole map (B, H, W, C); coarse pixels are repeated."""
        sizes, starts, _ = self._level(level)
        whole = pixels.new_empty(self.grid.batch, *self.grid.map_size(level), pixels.shape[1])
        native.combine_blocks(
            ctypes.addressof(sizes),
            self._high.data_ptr(),
            starts.data_ptr(),
            self.grid.batch,
            pixels.data_ptr(),
            pixels.shape[1] * pixels.element_size(),
            whole.data_ptr(),
        )
        return whole
