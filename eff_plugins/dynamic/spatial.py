"""Compute the branch of a residual block at chosen places of its output alone."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.module import DynamicModule, MacsOf
from eff_plugins.dynamic.policies import Decide
from eff_plugins.dynamic.recorder import emit, recording
from eff_plugins.dynamic.residual import ResidualBlock
from eff_plugins.dynamic.row_units import check_rows, layer_sizes
from eff_plugins.dynamic.rows import RowExecutor
from eff_plugins.ops.plan import spread, spread_needed


class SpatialGate(DynamicModule):
    """Computes the branch of a residual block in the chosen patches of its output; elsewhere the shortcut alone remains.

    Sparse execution works backwards from the chosen positions: each convolution is computed where the next one reads it
    (DynConv's dilated masks), the last one adds its result to the shortcut in place.

    Args:
        masker: The policy: (B, C, H, W) -> scores (B, 1, ceil(H' / patch), ceil(W' / patch)).
        patch: Side of a patch in pixels of the block's output (H', W'); those at the border may stand out.
        block: The block that this gate will run, to be checked; it is not kept.

    Raises:
        TypeError: The block's branch is no chain of plain convolutions with foldable normalisation.
    """

    def __init__(self, masker: nn.Module, patch: int, block: ResidualBlock) -> None:
        super().__init__()
        if patch < 1:
            raise ValueError(f'granularity {patch} must be at least 1 pixel')
        check_rows(block)
        self.masker = masker
        self.patch = patch
        self.decide = Decide()
        self._policy_macs = MacsOf()
        self.rows = RowExecutor()
        self._sizes: dict[tuple[int, int], list[tuple[int, int]]] = {}

    def settings(self) -> tuple:
        return (self.patch,)

    def forward(self, block: ResidualBlock, x: Tensor) -> Tensor:
        """The block's output for its input ``x`` (B, C, H, W).

        Raises:
            ValueError: The block's output is smaller than a patch.
        """
        self.check_execution()
        if self.execution == 'dense':
            return block.run(x)
        size = (x.shape[2], x.shape[3])
        if size not in self._sizes:
            self._sizes[size] = layer_sizes(block.units(), size)
        sizes = self._sizes[size]
        if min(sizes[-1]) < self.patch:
            raise ValueError(
                f'a map of {sizes[-1][0]}x{sizes[-1][1]} is smaller than a patch of granularity {self.patch}: '
                'use a smaller granularity or a larger input'
            )
        if self.execution == 'sparse' and not recording() and (read := self.rows.read(self.masker, x)) is not None:
            values, threshold = self.decide.cut(read)
            return self.rows.run(block, x, values, self.patch, threshold)
        scores = self.masker(x)
        if self.execution == 'sparse':
            values, threshold = self.decide.cut(scores)
            if recording():
                self._report(block, x, sizes, scores, (values > threshold).to(scores.dtype))
            return self.rows.run(block, x, values, self.patch, threshold)
        on = self.decide(scores)
        if recording():
            self._report(block, x, sizes, scores, on)
        return block.masked(x, spread(on, (self.patch, self.patch), sizes[-1]))

    def _report(
        self, block: ResidualBlock, x: Tensor, sizes: list[tuple[int, int]], scores: Tensor, on: Tensor
    ) -> None:
        mask = spread(on, (self.patch, self.patch), sizes[-1])
        dense, macs = branch_macs(block, sizes, mask, None if self.training else self.rows)
        policy = self._policy_macs(self.masker, tuple(x.shape[1:]))
        emit(
            self,
            dense_macs=dense,
            macs=macs + policy,
            policy_macs=policy,
            density=mask.flatten(1).mean(1),
            mask=mask.detach(),
            scores=scores.detach(),
        )


def branch_macs(
    block: ResidualBlock, sizes: list[tuple[int, int]], mask: Tensor, executor: RowExecutor | None
) -> tuple[float, Tensor]:
    """Multiply-adds of a block's branch for one sample, and (B,) those of computing it where ``mask`` is on; differentiable.

    Args:
        block: The block.
        sizes: Of its layers; see :func:`layer_sizes`.
        mask: (B, 1, H', W') in {0, 1}, the positions of its output.
        executor: What runs the branch: in evaluation what it executes counts, layers that it computes whole included. None
            counts what is decided, for training.
    """
    units, mask = block.units(), mask.float()  # half precision, as under autocast, cannot count
    whole = None
    if executor is not None and 0 < float(mask.mean()) < 1:
        whole = executor.prepared(block).computes_whole
    dense, macs = 0.0, torch.zeros_like(mask[:, 0, 0, 0])
    for i in reversed(range(len(units))):
        a_position = float(units[i].conv.weight.numel())  # type: ignore[operator, union-attr]
        places = sizes[i + 1][0] * sizes[i + 1][1]
        dense += places * a_position
        rows = mask.flatten(1).sum(1)
        if whole is not None and whole(i, sizes[i], float(rows.sum()) / (places * len(mask))):
            rows = torch.full_like(rows, places)
        macs = macs + rows * a_position
        mask = spread_needed(mask, units[i].conv, sizes[i])
    return dense, macs
