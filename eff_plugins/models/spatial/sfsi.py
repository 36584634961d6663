"""SFSI: Xie et al., "Spatially Adaptive Inference with Stochastic Feature Sampling and Interpolation", ECCV 2020.

Written from the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.module import DynamicModule, MacsOf
from eff_plugins.dynamic.policies import Decide
from eff_plugins.dynamic.recorder import emit, recording
from eff_plugins.dynamic.residual import ResidualBlock, act_name
from eff_plugins.dynamic.row_units import check_rows, layer_sizes
from eff_plugins.dynamic.rows import RowExecutor, may_overwrite
from eff_plugins.dynamic.sampling import straight_through
from eff_plugins.dynamic.skip import input_channels
from eff_plugins.dynamic.spatial import branch_macs
from eff_plugins.models.spatial.dynconv import PixelMasker
from eff_plugins.models.spatial.host import hosted, stages_of
from eff_plugins.models.spatial.lasnet import stride_of
from eff_plugins.ops.interpolate import add_interpolated, around, clamped
from eff_plugins.ops.rows import ACTIVATIONS

# Share of a neighbour's weight below which sums of weights count as that much for gradients: a sample more next to a position
# whose samples are all far would change its value by their difference, not by that over a vanishing sum
_STEADY = 0.1


class Kernel(nn.Module):
    """Weights of the samples around a position, ``exp(-(inverse_width * distance)^2 / 2)``: -> (1, 1, window, window).

    Args:
        window: Side in positions, odd.
    """

    is_policy = True
    exponent: Tensor

    def __init__(self, window: int) -> None:
        super().__init__()
        self.window = window
        self.inverse_width = nn.Parameter(torch.ones(()))
        steps = torch.arange(window) - window // 2
        self.register_buffer('exponent', -(steps[:, None] ** 2 + steps**2)[None, None] / 2, persistent=False)
        self._kept: tuple[tuple, Tensor] | None = None

    def forward(self) -> Tensor:
        # a position that is interpolated has no sample of its own: 0 there
        return torch.exp(self.inverse_width**2 * self.exponent) * (self.exponent < 0)

    def kept(self) -> Tensor:
        """The same without gradients; on a CPU computed once for each width, as the five small steps take long there."""
        width = self.inverse_width
        if not width.is_cpu:
            return self()
        kept, key = self._kept, (float(width), width.dtype)
        if kept is None or kept[0] != key:
            kept = self._kept = key, self().detach()
        return kept[1]


class InterpolatingGate(DynamicModule):
    """Computes the branch of a residual block at sampled positions and interpolates it at all others.

    An interpolated value is the mean of the samples in a window, weighted by their distance; without a sample there it
    is 0. A regular grid of positions is always sampled.

    Args:
        block: The block that this gate will run, to be checked; it is not kept.
        window: Side of the window, odd.
        grid: Distance between the grid's positions.

    Raises:
        TypeError: The block's branch is no chain of plain convolutions with foldable normalisation.
    """

    def __init__(self, block: ResidualBlock, window: int, grid: int) -> None:
        super().__init__()
        check_rows(block)
        self.masker = PixelMasker(input_channels(block), stride_of(block))
        self.kernel = Kernel(window)
        self.grid = grid
        self.decide = Decide()
        self.rows = RowExecutor()
        self._policy_macs = MacsOf()
        self._grid: tuple[tuple, Tensor] | None = None

    def settings(self) -> tuple:
        return self.kernel.window, self.grid

    def forward(self, block: ResidualBlock, x: Tensor) -> Tensor:
        """The block's output for its input ``x`` (B, C, H, W)."""
        self.check_execution()
        if self.execution == 'dense':
            return block.run(x)
        scores = self.masker(x)
        grid = self.grid_of((scores.shape[2], scores.shape[3]), scores.device)
        on = self.decide(scores).masked_fill(grid, 1.0)
        y = self._masked(block, x, on) if self.execution == 'masked' else self._sparse(block, x, on)
        if recording():
            self._report(block, x, scores, on)
        return y

    def _masked(self, block: ResidualBlock, x: Tensor, on: Tensor) -> Tensor:
        kernel, sampled = self.kernel(), block.masked_branch(x) * on
        sums, weight = around(sampled, on, kernel)
        filled = sums * ((1 - on) / clamped(weight))
        if torch.is_grad_enabled():
            # the nearest positions have the largest weight
            filled = straight_through(
                filled, sums * ((1 - on) / torch.maximum(weight, _STEADY * kernel.amax().detach()))
            )
        return block.merge(block.run_shortcut(x), sampled + filled)

    @torch.no_grad()
    def _sparse(self, block: ResidualBlock, x: Tensor, on: Tensor) -> Tensor:
        if bool(on.all()):
            return self.rows.run(block, x, on, 1)
        sampled = self.rows.branch(block, x, on > 0)
        shortcut = block.run_shortcut(x)
        in_place = shortcut is not x or may_overwrite(block, x)
        shortcut = shortcut.contiguous(memory_format=torch.channels_last)
        act = act_name(block.act)
        fused = act if act in ACTIVATIONS else None
        y = add_interpolated(sampled, on, self.kernel.kept(), shortcut, fused, in_place)
        return y if act == fused else block.act(y)  # type: ignore[misc]  # one that no kernel fuses

    def grid_of(self, size: tuple[int, int], device: torch.device) -> Tensor:
        """The positions that are always sampled in a map of ``size``: (1, 1, H, W) bool."""
        kept = self._grid
        if kept is None or kept[0] != (size, device):
            with torch.inference_mode(False):  # a later call may need gradients
                rows, columns = (torch.arange(n, device=device) % self.grid == min(self.grid, n) // 2 for n in size)
                kept = self._grid = (size, device), (rows[:, None] & columns)[None, None]
        return kept[1]

    def _report(self, block: ResidualBlock, x: Tensor, scores: Tensor, on: Tensor) -> None:
        on = on.float()  # half precision cannot count
        units = block.units()
        channels: int = units[-1].conv.out_channels  # type: ignore[assignment, union-attr]
        sizes = layer_sizes(units, (x.shape[2], x.shape[3]))
        dense, macs = branch_macs(block, sizes, on, None if self.training else self.rows)
        window, positions = self.kernel.window**2, scores.shape[2] * scores.shape[3]
        policy = self._policy_macs(self.masker, tuple(x.shape[1:])) + window * positions
        around = float(window * channels * positions)
        emit(
            self,
            dense_macs=dense,
            macs=macs + policy + around * (1 - on).flatten(1).mean(1),
            policy_macs=policy,
            least_macs=policy + around,  # the grid's few positions apart
            masked_macs=dense + policy + around,
            density=on.flatten(1).mean(1),
            mask=on.detach(),
            scores=scores.detach(),
        )


@hosted
def SFSI(network: nn.Module, window: int = 7, grid: int = 11) -> nn.Module:
    """Residual blocks computed at sampled positions and interpolated between them.

    Train with ``BudgetHook(budget, losses=dict(ratios=weight))`` as the paper does (0.02 to 0.2), or towards a budget.

    Args:
        network: The host.
        window: Side of the interpolation's window in positions of a block's output, odd (the released configs: 7).
        grid: Distance between positions that are always sampled (the released configs: 11).

    Raises:
        ValueError: A window that is even or below 3, or a grid below 1.
        TypeError: A residual block that cannot be computed in part; the message says why.
    """
    if window < 3 or window % 2 == 0:
        raise ValueError(f'window={window} must be odd and at least 3')
    if grid < 1:
        raise ValueError(f'grid={grid} must be at least 1, the distance between positions that are always sampled')
    for blocks, _ in stages_of(network, 1):
        for block in blocks:
            block.decide_by(InterpolatingGate(block, window, grid))
    return network
