"""SBNet's operators: mask -> active blocks -> gather -> (dense computing) -> scatter.

Source: Ren et al., "SBNet: Sparse Blocks Network for Fast Inference", CVPR 2018, section 3. A grid of blocks lies over a map;
only blocks that a mask touches are gathered into a batch, computed there by ordinary operators, and written back.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """(vertical, horizontal) of a number for both or a pair."""
    if isinstance(value, int):
        return value, value
    high, wide = value
    return int(high), int(wide)


@dataclass(frozen=True)
class BlockGrid:
    """Where the blocks of a map lie: block (i, j) begins at ``offset + (i, j) * stride`` and has ``size`` positions.

    Blocks may overlap (size > stride: a halo) and reach over the map's edges. There are as many as their strides need to
    cover the map, so a map that is no multiple of the stride has partial blocks at its end.

    Attributes:
        size: (height, width) of a block.
        stride: Distance between neighbouring blocks; ``size`` by default.
        offset: Of the first block; negative for a halo.

    Raises:
        ValueError: A size or a stride below 1.
    """

    size: tuple[int, int]
    stride: tuple[int, int] | None = None
    offset: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'stride', self.stride or self.size)
        for name in ('size', 'stride'):
            if min(getattr(self, name)) < 1:
                raise ValueError(f'{name}={getattr(self, name)} of a block grid must be at least 1 both ways')

    @property
    def steps(self) -> tuple[int, int]:
        """The stride, which is never None after construction."""
        assert self.stride is not None
        return self.stride

    def counts(self, height: int, width: int) -> tuple[int, int]:
        """(gh, gw): blocks that cover a map of (height, width)."""
        return -(-height // self.steps[0]), -(-width // self.steps[1])

    def with_halo(self, halo: int | tuple[int, int]) -> BlockGrid:
        """The same blocks with ``halo`` more positions on each side."""
        high, wide = pair(halo)
        size = (self.size[0] + 2 * high, self.size[1] + 2 * wide)
        return BlockGrid(size, self.stride, (self.offset[0] - high, self.offset[1] - wide))

    def positions(self, blocks: Tensor, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Flat positions ``(b * height + y) * width + x`` of listed blocks, and which of them lie on the map.

        Args:
            blocks: (N, 3) of (sample, i, j).
            height: Of the map.
            width: Of the map.

        Returns:
            Positions (N, h, w), clamped onto the map, and (N, h, w) booleans.
        """
        device = blocks.device
        y = (blocks[:, 1] * self.steps[0] + self.offset[0])[:, None] + torch.arange(self.size[0], device=device)
        x = (blocks[:, 2] * self.steps[1] + self.offset[1])[:, None] + torch.arange(self.size[1], device=device)
        inside = ((y >= 0) & (y < height))[:, :, None] & ((x >= 0) & (x < width))[:, None, :]
        line = blocks[:, :1] * height + y.clamp(0, height - 1)
        return line[:, :, None] * width + x.clamp(0, width - 1)[:, None, :], inside


def active_blocks(mask: Tensor, grid: BlockGrid, threshold: float = 0.0, average: bool = False) -> Tensor:
    """The blocks of a grid that a mask switches on.

    Args:
        mask: (B, 1, H, W) or (B, H, W); what lies outside of it counts as zero.
        grid: The blocks.
        threshold: A block is on where its value exceeds it.
        average: Compare the mean over a block's positions on the map; by default the largest.

    Returns:
        (N, 3) of (sample, i, j), in raster order; N may be 0.

    Raises:
        ValueError: ``mask`` has another shape.
    """
    if mask.ndim == 4 and mask.shape[1] == 1:
        mask = mask[:, 0]
    if mask.ndim != 3:
        raise ValueError(f'mask is {tuple(mask.shape)}; it must be (B, 1, H, W) or (B, H, W)')
    batch, height, width = mask.shape
    high, wide = grid.counts(height, width)
    every = torch.cartesian_prod(*(torch.arange(n, device=mask.device) for n in (batch, high, wide))).view(-1, 3)
    place, inside = grid.positions(every, height, width)
    value = mask.reshape(-1)[place].float()
    if average:
        score = (value * inside).sum((1, 2)) / inside.sum((1, 2)).clamp(min=1)
    else:
        score = value.masked_fill(~inside, 0.0).amax((1, 2))
    return every[score > threshold]


def gather_blocks(x: Tensor, blocks: Tensor, grid: BlockGrid) -> Tensor:
    """The listed blocks of a map as a batch; zero where a block reaches over the map's edge.

    Args:
        x: (B, C, H, W); channels-last is fast.
        blocks: (N, 3) of (sample, i, j), as :func:`active_blocks` returns them.
        grid: The blocks.

    Returns:
        (N, C, h, w), channels-last, differentiable.

    Raises:
        ValueError: A shape does not fit.
        IndexError: A block outside of the grid.
    """
    _check(x, 'x', blocks, grid)
    place, inside = grid.positions(blocks, *x.shape[2:])
    taken = x.permute(0, 2, 3, 1).reshape(-1, x.shape[1]).index_select(0, place.flatten())
    if not bool(inside.all()):
        taken = taken.masked_fill(~inside.reshape(-1, 1), 0.0)
    return taken.view(*place.shape, x.shape[1]).permute(0, 3, 1, 2)


def scatter_blocks(values: Tensor, blocks: Tensor, grid: BlockGrid, out: Tensor, add: bool = False) -> Tensor:
    """Write blocks back into a map; what reaches over its edge is dropped, other positions stay as they are.

    Where nothing needs a gradient ``out`` is written in place and returned; otherwise a new tensor is returned and gradients
    reach ``values`` and ``out``. Where blocks overlap, sums are exact with ``add``; without it one of them wins.

    Args:
        values: (N, C, h, w).
        blocks: (N, 3) of (sample, i, j).
        grid: The blocks; ``size`` is that of ``values``.
        out: (B, C, H, W).
        add: Add to ``out`` instead of replacing.

    Raises:
        ValueError: A shape or type does not fit.
        IndexError: A block outside of the grid.
    """
    _check(out, 'out', blocks, grid)
    wanted = (len(blocks), out.shape[1], *grid.size)
    if tuple(values.shape) != wanted or values.dtype != out.dtype:
        raise ValueError(
            f'values is {tuple(values.shape)} {values.dtype}; for these blocks it must be {wanted} {out.dtype} like out'
        )
    place, inside = grid.positions(blocks, *out.shape[2:])
    rows = values.permute(0, 2, 3, 1)[inside]
    place = place[inside]
    batch, channels, height, width = out.shape
    flat = out.permute(0, 2, 3, 1).reshape(-1, channels)
    if torch.is_grad_enabled() and (values.requires_grad or out.requires_grad):
        flat = flat.index_add(0, place, rows) if add else flat.index_copy(0, place, rows)
        return flat.view(batch, height, width, channels).permute(0, 3, 1, 2)
    (flat.index_add_ if add else flat.index_copy_)(0, place, rows)
    if flat.data_ptr() != out.data_ptr():  # not channels-last: `flat` was a copy
        out.copy_(flat.view(batch, height, width, channels).permute(0, 3, 1, 2))
    return out


def _check(x: Tensor, name: str, blocks: Tensor, grid: BlockGrid) -> None:
    if x.ndim != 4:
        raise ValueError(f'{name} is {tuple(x.shape)}; it must be (B, C, H, W)')
    if blocks.ndim != 2 or blocks.shape[1] != 3 or blocks.dtype != torch.int64:
        raise ValueError(
            f'blocks is {tuple(blocks.shape)} {blocks.dtype}; it must list (sample, i, j) as (N, 3) of int64'
        )
    limits = torch.tensor((x.shape[0], *grid.counts(*x.shape[2:])), device=blocks.device)
    if len(blocks) and not bool(((blocks >= 0) & (blocks < limits)).all()):
        raise IndexError(f'blocks names one outside of the grid of {limits.tolist()} (samples, rows, columns)')
