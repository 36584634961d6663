"""Residual blocks computed only in the blocks of a picture that a mask names: SBNet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from eff_plugins.dynamic.module import DynamicModule, MacsOf, WrapsStatic
from eff_plugins.dynamic.per_thread import PerThread
from eff_plugins.dynamic.policies import Decide
from eff_plugins.dynamic.recorder import emit, recording
from eff_plugins.dynamic.residual import ResidualBlock, residual_blocks
from eff_plugins.dynamic.row_units import computes_rows, layer_sizes, norm_fault
from eff_plugins.dynamic.rows import RowExecutor, may_overwrite
from eff_plugins.dynamic.skip import Branch
from eff_plugins.dynamic.spatial import branch_macs
from eff_plugins.models.spatial.segblocks import BlockPolicy, build_host
from eff_plugins.ops.blocks import BlockGrid, active_blocks, gather_blocks, pair, scatter_blocks
from eff_plugins.ops.dense import ACTIVATIONS, PackedConv2d
from eff_plugins.ops.native import kernels_for
from eff_plugins.ops.plan import spread
from eff_plugins.registry import MODELS


class Shared:
    """What the residual blocks of one network read in a forward pass.

    Args:
        block: Side of a block in pixels of the picture.

    Attributes:
        size: (H, W) of the picture.
        on: (B, 1, gh, gw) decisions, or None outside of a forward pass.
    """

    size = PerThread((0, 0))
    on = PerThread(None)

    def __init__(self, block: int) -> None:
        self.block = block

    def grid(self, height: int, width: int) -> BlockGrid:
        """The blocks on a map of the network.

        Raises:
            ValueError: A block has no whole pixels there.
        """
        stride = 1
        while stride < self.block and (-(-self.size[0] // stride), -(-self.size[1] // stride)) != (height, width):
            stride *= 2
        if stride >= self.block:
            raise ValueError(
                f'a map of {height}x{width} is no halving of the picture of {self.size} by less than a block'
            )
        return BlockGrid((self.block // stride, self.block // stride))


class Windows(TorchFunctionMode):
    """While active, convolutions shrink gathered blocks by their halo instead of padding them with zeros.

    What lies outside of the map is set to zero before each of them, as the padding of the whole map would be.

    Args:
        blocks: (N, 3) of (sample, i, j).
        grid: The blocks without halo.
        halo: Of the gathered blocks at first, (vertical, horizontal).
        size: (H, W) of the map.
    """

    def __init__(self, blocks: Tensor, grid: BlockGrid, halo: tuple[int, int], size: tuple[int, int]) -> None:
        super().__init__()
        self.blocks, self.grid, self.halo, self.size = blocks, grid, halo, size

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = getattr(func, '__name__', '')
        if name == 'conv2d':
            return self._convolve(*args, **(kwargs or {}))
        if name == 'fused':
            return self._fused(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))

    def _fused(self, conv: PackedConv2d, x: Tensor, act: str | None = None, residual: Tensor | None = None) -> Tensor:
        y = self._convolve(x, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        return ACTIVATIONS[act](y if residual is None else y + residual)

    def _convolve(
        self,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> Tensor:
        reach = _reach(weight.shape[2:], dilation)
        if pair(stride) != (1, 1) or pair(padding) != reach:
            raise NotImplementedError(f'stride {stride} and padding {padding} change the size of a residual branch')
        if reach != (0, 0):
            _, inside = self.grid.with_halo(self.halo).positions(self.blocks, *self.size)
            if not bool(inside.all()):
                x = x.masked_fill(~inside[:, None], 0.0)
            self.halo = (self.halo[0] - reach[0], self.halo[1] - reach[1])
        return F.conv2d(x, weight, bias, 1, 0, dilation, groups)


def _reach(kernel: Any, dilation: Any) -> tuple[int, int]:
    """Pixels that a convolution of stride 1 reads beyond its output on each side."""
    high, wide = ((k - 1) * d // 2 for k, d in zip(kernel, pair(dilation), strict=True))
    return high, wide


class BlockGate(DynamicModule):
    """Computes the branch of a residual block in the chosen blocks of its map; elsewhere the shortcut stands alone.

    The native kernels compute the blocks where they lie, and what two of them share once. Where they do not serve, and for
    branches that they do not take, blocks are gathered, computed with a halo each, and scattered.

    Args:
        shared: Where the network leaves its decisions.
        block: The block that this gate will run; it is not kept.
    """

    def __init__(self, shared: Shared, block: ResidualBlock) -> None:
        super().__init__()
        self.shared = shared
        self.rows = RowExecutor() if computes_rows(block) else None
        self._macs_of = MacsOf()

    def forward(self, block: ResidualBlock, x: Tensor) -> Tensor:
        """The block's output for its input ``x`` (B, C, H, W)."""
        self.check_execution()
        on = self.shared.on
        if self.execution == 'dense' or on is None:
            return block.run(x)
        grid = self.shared.grid(x.shape[2], x.shape[3])
        # what a training aims at does not depend on the device and type that it runs in
        if self.rows is not None and (self.training or kernels_for(x.detach()) is not None):
            return self._at_rows(self.rows, block, x, on, grid)
        return self._gathered(block, x, on, grid)

    def _at_rows(self, rows: RowExecutor, block: ResidualBlock, x: Tensor, on: Tensor, grid: BlockGrid) -> Tensor:
        size = (x.shape[2], x.shape[3])
        if recording():
            sizes = layer_sizes(block.units(), size)
            mask = spread(on, grid.size, size)
            self._report(on, *branch_macs(block, sizes, mask, None if self.training else rows))
        if self.execution == 'sparse':
            return rows.run(block, x, on, grid.size[0], 0.5)
        return block.masked(x, spread(on, grid.size, size))

    def _gathered(self, block: ResidualBlock, x: Tensor, on: Tensor, grid: BlockGrid) -> Tensor:
        size = (x.shape[2], x.shape[3])
        dense, reaches = self._macs_of(Branch(block), tuple(x.shape[1:])), _reaches(block)
        spent = on.float().flatten(1).sum(1) * _block_macs(block, grid, reaches)
        whole = float(spent.detach().sum()) >= dense * len(x)  # halos cost more than the blocks left out
        if recording():
            self._report(on, dense, dense + spent - spent.detach() if whole else spent)
        if self.execution == 'masked' or whole:
            return block.masked(x, spread(on, grid.size, size))
        halo = _total(reaches)
        shortcut = block.run_shortcut(x)
        blocks = (on[:, 0] > 0.5).nonzero()
        taken = gather_blocks(x, blocks, grid.with_halo(halo))
        kept = gather_blocks(shortcut, blocks, grid)
        out = block.rest(x, shortcut)
        if out is x and not may_overwrite(block, x):
            out = x.clone(memory_format=torch.preserve_format)
        if len(blocks):
            with Windows(blocks, grid, halo, size):
                taken = block.run_branch(taken)
            out = scatter_blocks(block.merge(kept, taken), blocks, grid, out)
        return out

    def _report(self, on: Tensor, dense: float, macs: Tensor) -> None:
        emit(
            self,
            dense_macs=dense,
            macs=macs,
            policy_macs=0.0,
            density=on.flatten(1).mean(1),
            mask=on.detach(),
            cell=self.shared.block,
        )


def _reaches(block: ResidualBlock) -> list[tuple[int, int]]:
    return [_reach(unit.conv.kernel_size, unit.conv.dilation) for unit in block.units()]  # type: ignore[arg-type]


def _total(reaches: list[tuple[int, int]]) -> tuple[int, int]:
    """The halo of a block for layers of such reach."""
    return sum(high for high, _ in reaches), sum(wide for _, wide in reaches)


def _block_macs(block: ResidualBlock, grid: BlockGrid, reaches: list[tuple[int, int]]) -> float:
    """Multiply-adds of a block's branch in one block of the grid: each layer computes what later ones read."""
    total = 0.0
    for i, unit in enumerate(block.units()):
        high, wide = _total(reaches[i + 1 :])
        weight: Any = unit.conv.weight
        total += weight.numel() * (grid.size[0] + 2 * high) * (grid.size[1] + 2 * wide)
    return total


def _keeps_size(block: ResidualBlock) -> bool:
    return all(pair(unit.conv.stride) == (1, 1) for unit in block.units())  # type: ignore[arg-type]


@MODELS.register_module()
class SBNet(WrapsStatic, BaseModule, DynamicModule):
    """A residual backbone whose branches are computed in some blocks of the picture; elsewhere their shortcut passes.

    Ren et al., "SBNet: Sparse Blocks Network for Fast Inference", CVPR 2018. There active blocks are gathered with the halo
    that a branch needs, computed by ordinary convolutions, and scattered back; :class:`BlockGate` says where that is done
    here. The mask is shared by all branches. It comes from a small network on the picture, trained with
    ``eff_plugins.BudgetHook``, or from outside (:meth:`use_mask`), as in the paper, where road maps or a first detector
    give it.

    Below ``backbone.`` the keys are those of the static network, below ``policy.`` the policy's; a checkpoint of the static
    network, without the former, is loaded, too.

    Args:
        backbone: Config of the backbone (or the module itself) made of residual blocks whose branches are chains of
            convolutions; blocks with a stride stay as they are.
        block_size: Side of a block in pixels; a multiple of 32 and larger than the backbone's largest stride.
        policy: Arguments of ``BlockPolicy``.
        init_cfg: As in mmengine; weights belong in the backbone's ``init_cfg``.

    Attributes:
        out_channels: Of the returned maps; ``out_strides`` and ``size_divisor`` as the backbone's.

    Raises:
        ValueError: ``block_size`` does not fit, or the backbone has no residual block.
        TypeError: A branch normalises over the whole map, or is no chain of plain convolutions.
    """

    def __init__(
        self,
        backbone: Mapping[str, Any] | nn.Module,
        block_size: int = 64,
        policy: Mapping[str, Any] | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        BaseModule.__init__(self, init_cfg)  # and through it DynamicModule's
        network = build_host(backbone, block_size)
        found = [block for _, block in residual_blocks(network) if _keeps_size(block)]
        if not found:
            raise ValueError(f'{type(network).__name__} has no residual block whose branch may be left out')
        self.shared = Shared(block_size)
        for block in found:
            for unit in block.units():
                if not isinstance(unit.conv, nn.Conv2d):
                    raise TypeError(f'{type(unit.conv).__name__} in a residual branch reads beyond the halo of a block')
                if (fault := norm_fault(unit.norm)) is not None:
                    raise TypeError(fault)
            block.decide_by(BlockGate(self.shared, block))
        self.backbone = network
        self.policy = BlockPolicy(block_size, **{'keep': 2.0, **(policy or {})})
        self.decide = Decide()
        self.out_channels = tuple(network.out_channels)
        self.out_strides = tuple(network.out_strides)
        self.size_divisor = network.size_divisor
        self._given: Tensor | None = None
        self._macs_of = MacsOf()

    def settings(self) -> tuple:
        return (self.shared.block,)

    def use_mask(self, mask: Tensor | None) -> None:
        """Decide by a mask of the picture from now on, or (None) by the policy again, which is not asked meanwhile.

        A network that trains on several processes by such masks alone has a policy without gradients: freeze it beforehand,
        ``backbone.policy.requires_grad_(False)``.

        Args:
            mask: (B, 1, H, W) or (B, H, W); a block is computed where any of its pixels is above 0.
        """
        self._given = mask

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        self.check_execution()
        if self.execution == 'dense':
            return self.backbone(x)
        scores = self.policy(x) if self._given is None else None
        on = self._from_mask(x) if scores is None else self.decide(scores)
        if recording():
            macs = 0.0 if scores is None else self._macs_of(self.policy, tuple(x.shape[1:]))
            emit(
                self,
                dense_macs=0.0,
                macs=torch.full((len(x),), macs, device=x.device),
                policy_macs=macs,
                density=on.flatten(1).mean(1),
                mask=on.detach(),
                cell=self.shared.block,
                scores=None if scores is None else scores.detach(),
            )
        self.shared.size, self.shared.on = (x.shape[2], x.shape[3]), on
        try:
            return self.backbone(x)
        finally:
            self.shared.on = None

    def _from_mask(self, x: Tensor) -> Tensor:
        """The given mask as decisions (B, 1, gh, gw).

        Raises:
            ValueError: The mask is not of this picture.
        """
        assert self._given is not None
        if (len(self._given), *self._given.shape[-2:]) != (len(x), *x.shape[2:]):
            raise ValueError(f'the mask is {tuple(self._given.shape)}, the picture {tuple(x.shape)}')
        grid = BlockGrid((self.shared.block, self.shared.block))
        on = x.new_zeros(len(x), 1, *grid.counts(*x.shape[2:]))
        sample, i, j = active_blocks(self._given, grid).unbind(1)
        on[sample, 0, i, j] = 1.0
        return on
