"""SegBlocks' representation: pictures as blocks of which some have the full and some half the resolution.

Source: Verelst & Tuytelaars, "SegBlocks: Block-Based Dynamic Resolution Networks for Real-Time Segmentation", TPAMI 2022,
section 3. All blocks of a batch lie in one *pool* (1, C, 1, P): one position a pixel, whatever its resolution. What works on
single pixels (1x1 convolutions, normalisation, activations, sums) runs on the pool as it is, in one call. Whatever sees
neighbours (larger kernels, strides, pooling) runs on blocks whose border BlockPad has filled from the neighbouring blocks:
copied where those have the same resolution, averaged from a finer one, repeated from a coarser one, zero outside of the
picture. So nothing is computed twice. The index tables follow from the decision alone; they are computed once and serve all
layers of the same geometry.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from operator import mul

import torch
import torch.nn.functional as F
from torch import Tensor

from eff_plugins.ops.dense import same_padding
from eff_plugins.ops.dual_tables import Tables
from eff_plugins.ops.native import kernels

_OUTSIDE = -1  # entry of a map: no pixel there; below it: -2 - (position in the low-resolution map), an average to take


@dataclass(frozen=True)
class Window:
    """Geometry of an operator that sees neighbours.

    Attributes:
        kernel: (height, width), dilation included: what one output reads.
        stride: The same both ways, a power of two.
        padding: (top, left); None pads as TensorFlow's ``SAME`` does, depending on the map's size.
    """

    kernel: tuple[int, int]
    stride: int
    padding: tuple[int, int] | None

    def before(self, size: tuple[int, int]) -> tuple[int, int]:
        """Rows above and columns left of a map of ``size`` that the first outputs read."""
        if self.padding is not None:
            return self.padding
        (top, _), (left, _) = same_padding(size, self.kernel, (self.stride, self.stride), (1, 1))
        return top, left

    def reads(self, height: int, width: int) -> tuple[int, int]:
        """Size of what a block of (height, width) outputs reads."""
        return (height - 1) * self.stride + self.kernel[0], (width - 1) * self.stride + self.kernel[1]


@dataclass(frozen=True)
class Group:
    """Blocks of one shape.

    Attributes:
        low: Whether they have half the resolution.
        cells: (n, 3) of (sample, i, j).
        last: Whether they are the partial blocks at the picture's bottom, at its right.
    """

    low: bool
    cells: Tensor
    last: tuple[bool, bool]

    @property
    def count(self) -> int:
        """Their number."""
        return self.cells.shape[0]


@dataclass(frozen=True)
class Gather:
    """How to fill a group's blocks with borders from the pool.

    Attributes:
        shape: (n, height, width) with borders.
        rows: (n * height * width,) positions in the pool.
        outside: Entries of ``rows`` that lie outside of the picture.
        averaged: Entries of ``rows`` that are means of four pixels of a finer neighbour.
        quads: (len(averaged) * 4,) positions of those pixels.
    """

    shape: tuple[int, int, int]
    rows: Tensor
    outside: Tensor
    averaged: Tensor
    quads: Tensor

    def __call__(self, pool: Tensor, fill: float = 0.0) -> Tensor:
        """Pool (1, C, 1, P) -> blocks (n, C, height, width) with borders, differentiable."""
        pixels = rows_of(pool)
        taken = pixels.index_select(0, self.rows)
        if len(self.outside):
            taken.index_fill_(0, self.outside, fill)
        if len(self.averaged):
            mean = pixels.index_select(0, self.quads).view(-1, 4, pixels.shape[1]).mean(1)
            taken.index_copy_(0, self.averaged, mean)
        return taken.view(*self.shape, pixels.shape[1]).permute(0, 3, 1, 2)


def rows_of(pool: Tensor) -> Tensor:
    """Pool (1, C, 1, P) -> (P, C), a view of a channels-last pool."""
    return pool[0, :, 0].t()


def pool_of(rows: Tensor) -> Tensor:
    """(P, C) -> pool (1, C, 1, P), a view."""
    return rows.t()[None, :, None]


def halve(x: Tensor) -> Tensor:
    """(B, C, H, W) -> (B, C, ceil(H / 2), ceil(W / 2)): means of 2x2 pixels, at the edges of those that there are."""
    batch, channels, height, width = x.shape
    if height % 2 or width % 2 or x.dtype != torch.float32:
        return F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
    # torch's pooling is slow on few channels
    pixels = x.permute(0, 2, 3, 1)
    pairs = (pixels[:, ::2] + pixels[:, 1::2]).reshape(batch, height // 2, width // 2, 2 * channels)
    return ((pairs[..., :channels] + pairs[..., channels:]) * 0.25).permute(0, 3, 1, 2)


@dataclass
class Level:
    """The pool's layout at one stride.

    Attributes:
        fine: (B, gh * side, gw * side) position in the pool of each full-resolution pixel: its own, or that of the
            half-resolution pixel that stands for it; -1 outside of the picture.
        coarse: The same at half the resolution; below -1 where a full-resolution block lies.
    """

    fine: Tensor
    coarse: Tensor
    gathers: dict[Window, list[Gather]] = field(default_factory=dict)


class DualGrid:
    """One decision for a batch, and every table that follows from it.

    Args:
        high: (B, gh, gw) booleans: blocks of full resolution.
        size: (H, W) of the picture; it need not be a multiple of the block.
        block: Side of a block in pixels of the picture.

    Raises:
        ValueError: ``high`` does not fit the picture.
    """

    def __init__(self, high: Tensor, size: tuple[int, int], block: int) -> None:
        self.size, self.block = size, block
        wanted = (-(-size[0] // block), -(-size[1] // block))
        if high.ndim != 3 or high.dtype != torch.bool or tuple(high.shape[1:]) != wanted or not len(high):
            raise ValueError(
                f'high is {tuple(high.shape)} {high.dtype}; for a picture of {size} in blocks of {block} it must be '
                f'(B, {wanted[0]}, {wanted[1]}) of booleans'
            )
        self.batch, self.cells = len(high), wanted
        self.groups = [
            group for low in (False, True) for group in self._groups(low, high.logical_not() if low else high)
        ]
        self.high = high.clone()
        self._levels: dict[int, Level] = {}
        self._shapes: dict[int, list[tuple[int, int]]] = {}

    def _groups(self, low: bool, chosen: Tensor) -> list[Group]:
        cells = chosen.nonzero()
        partial = [n % self.block != 0 for n in self.size]
        last = [partial[axis] & (cells[:, axis + 1] == self.cells[axis] - 1) for axis in (0, 1)]
        groups = []
        for bottom in (False, True)[: 1 + partial[0]]:
            for right in (False, True)[: 1 + partial[1]]:
                part = cells[(last[0] == bottom) & (last[1] == right)] if any(partial) else cells
                if len(part):
                    groups.append(Group(low, part, (bottom, right)))
        return groups

    def side(self, level: int, low: bool) -> int:
        """Side of a block at stride ``2 ** level``.

        Raises:
            ValueError: The block is too small to be halved that often.
        """
        shift = level + low
        if self.block % (1 << shift):
            raise ValueError(
                f'block_size={self.block} must be a multiple of {2 << level}: blocks of half the resolution at stride '
                f'{1 << level} have no whole pixels'
            )
        return self.block >> shift

    def map_size(self, level: int, low: bool = False) -> tuple[int, int]:
        """(H, W) of the whole map at stride ``2 ** level``."""
        step = 1 << (level + low)
        return -(-self.size[0] // step), -(-self.size[1] // step)

    def block_shape(self, group: Group, level: int) -> tuple[int, int]:
        """(height, width) of a group's blocks."""
        side, size = self.side(level, group.low), self.map_size(level, group.low)
        high, wide = (
            n - (cells - 1) * side if last else side
            for n, cells, last in zip(size, self.cells, group.last, strict=True)
        )
        return high, wide

    def shapes(self, level: int) -> list[tuple[int, int]]:
        """(height, width) of each group's blocks, computed once."""
        if level not in self._shapes:
            self._shapes[level] = [self.block_shape(group, level) for group in self.groups]
        return self._shapes[level]

    def areas(self, level: int) -> list[int]:
        """Pixels in a block of each group."""
        return [high * wide for high, wide in self.shapes(level)]

    @cached_property
    def sample_counts(self) -> list[Tensor]:
        """(B,) blocks of each sample in each group."""
        return [torch.bincount(group.cells[:, 0], minlength=self.batch) for group in self.groups]

    def pixels(self, level: int) -> Tensor:
        """(B,) pixels that each sample has in the pool at stride ``2 ** level``."""
        return sum(map(mul, self.sample_counts, self.areas(level)))  # type: ignore[return-value]

    def level(self, level: int) -> Level:
        """The layout at stride ``2 ** level``, computed once."""
        if level not in self._levels:
            self._levels[level] = self._layout(level)
        return self._levels[level]

    def _layout(self, level: int) -> Level:
        device = self.groups[0].cells.device
        fine_side, coarse_side = self.side(level, False), self.side(level, True)
        rows, columns = self.cells
        fine = torch.full((self.batch, rows * fine_side, columns * fine_side), _OUTSIDE, device=device)
        shape = (self.batch, rows * coarse_side, columns * coarse_side)
        coarse = -2 - torch.arange(shape[0] * shape[1] * shape[2], device=device).view(shape)
        fine_blocks = fine.view(self.batch, rows, fine_side, columns, fine_side).transpose(2, 3)
        coarse_blocks = coarse.view(self.batch, rows, coarse_side, columns, coarse_side).transpose(2, 3)
        start = 0
        for group in self.groups:
            high, wide = self.block_shape(group, level)
            places = torch.arange(start, start + len(group.cells) * high * wide, device=device).view(-1, high, wide)
            start += places.numel()
            sample, i, j = group.cells.unbind(1)
            if group.low:
                coarse_blocks[sample, i, j, :high, :wide] = places
                high, wide = self.block_shape(Group(False, group.cells, group.last), level)
                places = places.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :high, :wide]
            fine_blocks[sample, i, j, :high, :wide] = places
        high, wide = self.map_size(level, low=True)
        coarse[:, high:] = _OUTSIDE
        coarse[:, :, wide:] = _OUTSIDE
        return Level(fine, coarse)

    def gathers(self, level: int, window: Window) -> list[Gather]:
        """BlockPad's tables for an operator that reads the pool at stride ``2 ** level``: one for each group."""
        layout = self.level(level)
        if window not in layout.gathers:
            layout.gathers[window] = [self._gather(group, level, window) for group in self.groups]
        return layout.gathers[window]

    def count(self, level: int) -> int:
        """P, pixels in the pool at stride ``2 ** level``."""
        return sum(group.count * area for group, area in zip(self.groups, self.areas(level), strict=True))

    @cached_property
    def tables(self) -> Tables:
        """What the native kernels read."""
        return Tables(self)

    def _gather(self, group: Group, level: int, window: Window) -> Gather:
        layout = self.level(level)
        entries = self.windows((layout.coarse if group.low else layout.fine)[:, None], group, level, window, _OUTSIDE)
        count, _, high, wide = entries.shape
        rows = entries.flatten()
        outside = (rows == _OUTSIDE).nonzero()[:, 0]
        averaged = (rows < _OUTSIDE).nonzero()[:, 0]
        quads = self._quads(-2 - rows[averaged], level)
        return Gather((count, high, wide), rows.clamp(min=0), outside, averaged, quads)

    def _quads(self, places: Tensor, level: int) -> Tensor:
        """The four full-resolution pixels of half-resolution positions; at the picture's edge the last one counts twice."""
        layout = self.level(level)
        rows, columns = layout.coarse.shape[1:]
        column, line = places % columns, places // columns
        sample, line = line // rows, line % rows
        high, wide = self.map_size(level)
        step = torch.arange(2, device=places.device)
        y = (2 * line[:, None] + step).clamp(max=high - 1)
        x = (2 * column[:, None] + step).clamp(max=wide - 1)
        return layout.fine[sample[:, None, None], y[:, :, None], x[:, None, :]].flatten()

    def windows(self, maps: Tensor, group: Group, level: int, window: Window, fill: float) -> Tensor:
        """What each block of a group reads of a whole map, ``fill`` outside of it.

        Args:
            maps: (B, C, H, W) at the group's resolution and stride ``2 ** level``, or padded at its end to whole blocks.
            group: The blocks.
            level: Of the map; the blocks of outputs are those of ``level + log2(stride)``.
            window: The operator.
            fill: Value outside of the map.

        Returns:
            (n, C, height, width), contiguous.
        """
        side, after = self.side(level, group.low), level + window.stride.bit_length() - 1
        top, left = window.before(self.map_size(level, group.low))
        high, wide = window.reads(*self.block_shape(group, after))
        rows, columns = self.cells
        below = max((rows - 1) * side + high - top - maps.shape[2], 0)
        right = max((columns - 1) * side + wide - left - maps.shape[3], 0)
        padded = F.pad(maps, (left, right, top, below), value=fill).contiguous()
        batch, channels, height, width = padded.shape
        strides = (channels * height * width, side * width, side, height * width, width, 1)
        every = padded.as_strided((batch, rows, columns, channels, high, wide), strides)
        sample, i, j = group.cells.unbind(1)
        return every[sample, i, j]

    def half(self, x: Tensor) -> Tensor:
        """The map at half the resolution, as blocks of it need it; ``x`` itself where there are none."""
        return halve(x) if any(group.low for group in self.groups) else x

    def owners(self, level: int) -> tuple[Tensor, Tensor]:
        """(P,) sample that each pixel of a pool at stride ``2 ** level`` belongs to, and the pixels that it stands for."""
        areas = zip(self.groups, self.areas(level), strict=True)
        samples = [group.cells[:, 0].repeat_interleave(area) for group, area in areas]
        weights = [4.0 if group.low else 1.0 for group in self.groups]
        sizes = torch.tensor([len(part) for part in samples], device=samples[0].device)
        return torch.cat(samples), torch.tensor(weights, device=samples[0].device).repeat_interleave(sizes)

    def split(self, x: Tensor, level: int = 0) -> Tensor:
        """A whole map (B, C, H, W) at stride ``2 ** level`` -> its pool; blocks of half the resolution are averaged."""
        window = Window((1, 1), 1, (0, 0))
        half = self.half(x)
        taken = [self.windows(half if group.low else x, group, level, window, 0.0) for group in self.groups]
        return pool_of(torch.cat([block.permute(0, 2, 3, 1).reshape(-1, x.shape[1]) for block in taken]))

    def combine(self, pool: Tensor, level: int) -> Tensor:
        """A pool at stride ``2 ** level`` -> the whole map (B, C, H, W), channels-last; coarse pixels are repeated."""
        pixels, (high, wide) = rows_of(pool), self.map_size(level)
        native = None if pixels.requires_grad or pixels.device.type != 'cpu' else kernels()
        if native is not None:
            return self.tables.combine(native, pixels.contiguous(), level).permute(0, 3, 1, 2)
        rows = self.level(level).fine[:, :high, :wide].flatten()
        whole = pixels.index_select(0, rows).view(self.batch, high, wide, -1)
        return whole.permute(0, 3, 1, 2)
