"""SACT: Figurnov et al., "Spatially Adaptive Computation Time for Residual Networks", CVPR 2017. Written from the paper."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.module import DynamicModule, MacsOf
from eff_plugins.dynamic.policies import HardDecide
from eff_plugins.dynamic.recorder import emit, recording
from eff_plugins.dynamic.residual import ResidualBlock, residual_blocks
from eff_plugins.dynamic.row_units import check_rows, layer_sizes
from eff_plugins.dynamic.rows import RowExecutor
from eff_plugins.dynamic.skip import input_channels
from eff_plugins.dynamic.spatial import branch_macs
from eff_plugins.models.spatial.dynconv import PixelMasker
from eff_plugins.models.spatial.host import hosted


class HaltingStage(DynamicModule):
    """Runs the residual blocks of a stage, each where no position has halted yet (section 3.2).

    Each block's input is the state after the block before it. A position's halting score of that state is its weight in the
    stage's output; when they add up to 1 - epsilon the position halts, the state gets the rest, and later blocks pass it on.
    The slots of the other blocks hold :class:`Passed`. A control (``set_policy``) decides in place of the scores: the output
    then is the last state that was computed.

    Args:
        blocks: Blocks that keep the shape; the slot of the first one takes this module.
        epsilon: Weight that may be left when a position halts; the knob for budgets.

    Raises:
        TypeError: A block that cannot be computed in part.
    """

    def __init__(self, blocks: Sequence[ResidualBlock], epsilon: float) -> None:
        super().__init__()
        for block in blocks:
            check_rows(block)
        # begins with a small score: the positions run through all blocks
        self.halting = nn.ModuleList(PixelMasker(input_channels(block), keep=-3.0) for block in blocks)
        self.decide = HardDecide(epsilon)  # the gradient comes through the weights (section 3)
        self.rows = nn.ModuleList(RowExecutor() for _ in blocks)
        self._policy_macs = MacsOf()
        self._others = tuple(blocks[1:])  # a tuple: they stay children of the network alone

    def forward(self, block: ResidualBlock, x: Tensor) -> Tensor:
        """The stage's output for the input ``x`` (B, C, H, W) of its first block here."""
        self.check_execution()
        blocks = (block, *self._others)
        if self.execution == 'dense':
            for each in blocks:
                x = each.run(x)
            return x
        going = left = torch.ones_like(x[:, :1])
        ponder = torch.ones_like(left)  # the units that ran; the state at hand is the first one's
        out, scores, masks = None, [], []
        for each, halting, rows in zip(blocks, self.halting, self.rows, strict=True):
            score = torch.minimum(torch.sigmoid(halting(x)), left)
            scores.append(left - score)
            on = self.decide(scores[-1]) * going
            if self.decide.kind != 'learned':
                score = left * (1 - on)
            halted = (going - on) * left
            weight = on * score + halted
            if recording():
                ponder = ponder + on + halted
            out = x * weight if out is None else add_weighted(out, x, weight)
            left, going = left - weight, on
            masks.append(on)
            if self.execution == 'masked':
                x = each.masked(x, on)
            else:
                x = rows.run(each, x, on, 1)  # type: ignore[operator]
        if recording():
            self._report(blocks, x, torch.cat(masks, 1), torch.cat(scores, 1), ponder + going * left)
        assert out is not None
        return add_weighted(out, x, left)

    def _report(self, blocks: Sequence[ResidualBlock], x: Tensor, on: Tensor, scores: Tensor, ponder: Tensor) -> None:
        dense, policy = 0.0, 0.0
        on = on.float()  # half precision cannot count
        macs = on.new_zeros(len(on))
        for i, (block, halting, rows) in enumerate(zip(blocks, self.halting, self.rows, strict=True)):
            sizes = layer_sizes(block.units(), (x.shape[2], x.shape[3]))
            all_of_it, some = branch_macs(block, sizes, on[:, i : i + 1], None if self.training else rows)  # type: ignore[arg-type]
            dense, macs = dense + all_of_it, macs + some
            policy += self._policy_macs(halting, tuple(x.shape[1:]))
        emit(
            self,
            dense_macs=dense,
            macs=macs + policy,
            policy_macs=policy,
            density=on.flatten(1).mean(1),
            mask=on.detach().mean(1, keepdim=True),
            scores=scores.detach(),
            ponder=ponder.flatten(1).mean(1),
        )


def add_weighted(out: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    """``out + x * weight``, written over ``out``, which nothing else may read, where no gradient is recorded."""
    fresh = torch.is_grad_enabled() or not out.dtype == x.dtype == weight.dtype  # autocast: the sum has the wider type
    return out + x * weight if fresh else out.addcmul_(x, weight)


class Passed(nn.Module):
    """The slot of a block that another one has already run."""

    def forward(self, block: ResidualBlock, x: Tensor) -> Tensor:
        return x


@hosted
def SACT(network: nn.Module, epsilon: float = 0.01) -> nn.Module:
    """Residual networks in which each position of a stage goes through as many blocks as it needs.

    The first block of a stage is always computed. Train with ``BudgetHook(budget, losses=dict(ponder=tau))``; the budget is
    only logged.

    Args:
        network: The host.
        epsilon: Weight that may be left when a position halts.

    Raises:
        ValueError: ``epsilon`` outside [0, 1), or no stage has a block that may be left out.
        TypeError: A residual block that cannot be computed in part; the message says why.
    """
    if not 0 <= epsilon < 1:
        raise ValueError(
            f'epsilon={epsilon} must lie in [0, 1): a position halts when its scores add up to 1 - epsilon'
        )
    stages: dict[str, list[ResidualBlock]] = {}
    for name, block in residual_blocks(network):
        stage, _, number = name.rpartition('.')
        if number != '0':
            stages.setdefault(stage, []).append(block)
    if not stages:
        raise ValueError(f'{type(network).__name__} has no stage of two or more residual blocks: nothing can halt')
    for blocks in stages.values():
        blocks[0].decide_by(HaltingStage(blocks, epsilon))
        for block in blocks[1:]:
            block.decide_by(Passed())
    return network
