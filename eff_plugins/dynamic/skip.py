"""Layer skipping: one decision a residual block and sample, the coarsest granularity of spatial dynamic networks.

The gate follows SkipNet (Wang et al., ECCV 2018) in reading the pooled input of the block, and is trained as in ConvNet-AIG
(Veit & Belongie, ECCV 2018) with a straight-through Gumbel sample instead of reinforcement learning.
"""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.module import DynamicModule, MacsOf
from eff_plugins.dynamic.policies import Decide
from eff_plugins.dynamic.recorder import emit, recording
from eff_plugins.dynamic.residual import ResidualBlock, residual_blocks
from eff_plugins.dynamic.row_units import computes_rows, layer_sizes
from eff_plugins.dynamic.rows import RowExecutor, may_overwrite
from eff_plugins.dynamic.spatial import branch_macs
from eff_plugins.ops.branch import rounded
from eff_plugins.ops.native import kernels_for
from eff_plugins.ops.scores import Linear, Scores, patch_scores

Model = TypeVar('Model', bound=nn.Module)


class PooledGate(nn.Module):
    """(B, C, H, W) -> one score a sample, (B, 1, 1, 1): a linear function of the channels' means.

    Args:
        channels: C.
        keep: Bias at the start, so that blocks begin switched on.
    """

    is_policy = True  # has no counterpart in the dense network, and its own initialisation

    def __init__(self, channels: int, keep: float = 2.0) -> None:
        super().__init__()
        self.fc = nn.Linear(channels, 1)
        nn.init.zeros_(self.fc.weight)
        nn.init.constant_(self.fc.bias, keep)

    def forward(self, x: Tensor) -> Tensor:
        return patch_scores(x, self.fc.weight, self.fc.bias, max(x.shape[2], x.shape[3]))

    def linear(self) -> Linear:
        """What ``forward`` computes."""
        fc = self.fc
        return Linear(fc.weight, fc.bias, 0)


class LayerGate(DynamicModule):
    """Computes the branch of a residual block for some samples of a batch and leaves it out for the others.

    A sample whose branch is left out gets what the block makes of its shortcut alone.

    Args:
        channels: Channels of the block's input.
        block: The block that this gate will run; it is not kept.
    """

    def __init__(self, channels: int, block: ResidualBlock) -> None:
        super().__init__()
        self.gate = PooledGate(channels)
        self.rows = RowExecutor() if computes_rows(block) else None
        self.decide = Decide()
        self._macs_of = MacsOf()

    def forward(self, block: ResidualBlock, x: Tensor) -> Tensor:
        """The block's output for its input ``x`` (B, C, H, W)."""
        self.check_execution()
        if self.execution == 'dense':
            return block.run(x)
        if self.execution == 'sparse' and not recording() and self.rows is not None:
            read = self.rows.read(self.gate, x)
            if read is not None:
                return self._sparse(block, x, *self.decide.cut(read))
        scores = self.gate(x)
        if self.execution == 'sparse':
            values, threshold = self.decide.cut(scores)
            if recording():
                self._report(block, x, scores, (values > threshold).to(scores.dtype))
            return self._sparse(block, x, values, threshold)
        on = self.decide(scores)
        if recording():
            self._report(block, x, scores, on)
        return block.masked(x, on)

    def _report(self, block: ResidualBlock, x: Tensor, scores: Tensor, on: Tensor) -> None:
        gate, density = float(x.shape[1]), on.flatten(1).mean(1)
        if self.rows is None:
            dense = self._macs_of(Branch(block), tuple(x.shape[1:]))
            macs = density * dense
        else:
            sizes = layer_sizes(block.units(), (x.shape[2], x.shape[3]))
            mask = on.expand(-1, -1, *sizes[-1])
            dense, macs = branch_macs(block, sizes, mask, None if self.training else self.rows)
        emit(
            self,
            dense_macs=dense,
            macs=macs + gate,
            policy_macs=gate,
            density=density,
            mask=on.detach(),
            scores=scores.detach(),
        )

    def _sparse(self, block: ResidualBlock, x: Tensor, scores: Tensor | Scores, threshold: float) -> Tensor:
        """The block's output, its branch computed for samples whose score (B, 1, 1, 1) is above ``threshold``."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                return self._sparse(block, x, scores, threshold)
        # a comparison of so few numbers costs less than one of tensors
        values = scores.flatten().tolist() if isinstance(scores, Tensor) else scores.listed()
        least = rounded(threshold, scores.dtype)
        chosen = [value > least for value in values]
        if not any(chosen):
            return block.rest(x, block.run_shortcut(x))
        if all(chosen) and not self._pays(block, x, scores):
            return block.run(x)
        if self.rows is not None:  # a patch as large as the map: no sample is copied out and back
            return self.rows.run(block, x, scores, None, threshold)
        on = torch.tensor(chosen, device=x.device)
        shortcut = block.run_shortcut(x)
        done = block.merge(shortcut[on], block.run_branch(x[on]))
        out = block.rest(x, shortcut)
        if out is x and not may_overwrite(block, x):
            out = x.clone()
        out[on] = done
        return out

    def _pays(self, block: ResidualBlock, x: Tensor, scores: Tensor | Scores) -> bool:
        """Whether rows compute a block with everything on: native kernels that are faster; or somebody measures them."""
        if self.rows is None or torch._C._len_torch_function_stack():  # kernels would bypass a mode
            return False
        if self.rows.watch is not None:
            return True
        served = not isinstance(scores, Tensor) or kernels_for(x, weights=(scores,)) is not None
        return served and self.rows.prepared(block).pays_everywhere((x.shape[2], x.shape[3]))


class Branch(nn.Module):
    """The branch of a block alone, for what counts or times it."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        return self.block.run_branch(x)


def input_channels(block: ResidualBlock) -> int:
    """Channels of a block's input: those of its first convolution."""
    return next(module for module in block.modules() if isinstance(module, nn.Conv2d)).in_channels


def skip_layers(model: Model, keep_first: int = 0) -> Model:
    """Let every residual block of ``model`` decide whether to compute its branch, in place.

    Args:
        model: A network of residual blocks (:class:`ResidualBlock`), as the suite's backbones are, or one that contains it.
        keep_first: Blocks at the beginning that stay static.

    Returns:
        The same model.

    Raises:
        ValueError: No block is left to skip, or ``keep_first`` is negative.
    """
    blocks = [block for _, block in residual_blocks(model)]
    if not 0 <= keep_first < len(blocks):
        raise ValueError(
            f'{type(model).__name__} has {len(blocks)} residual blocks; keep_first={keep_first} must be at least 0 and leave '
            'one to skip'
        )
    for block in blocks[keep_first:]:
        block.decide_by(LayerGate(input_channels(block), block))
    return model
