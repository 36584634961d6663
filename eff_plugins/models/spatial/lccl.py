"""LCCL: Dong et al., "More is Less: A More Complicated Network with Less Inference Complexity", CVPR 2017.

Written from the paper.
"""

from __future__ import annotations

from math import prod
from typing import NamedTuple

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.module import DynamicModule
from eff_plugins.dynamic.policies import HardDecide
from eff_plugins.dynamic.recorder import emit, recording
from eff_plugins.dynamic.residual import ResidualBlock
from eff_plugins.dynamic.row_units import check_rows, layer_sizes
from eff_plugins.dynamic.rows import PreparedBranch, RowExecutor, add_last, fresh
from eff_plugins.models.spatial.host import hosted, stages_of
from eff_plugins.ops.plan import rows_above
from eff_plugins.ops.rows import run_rows
from eff_plugins.ops.scores import conv_scores
from eff_plugins.ops.scratch import scratch

KERNELS = ('shared', 'pointwise')


class Collaborator(nn.Module):
    """The low-cost layer beside a convolution, with BatchNorm and ReLU: (B, C, H, W) -> (B, 1 or C', H', W'), not negative.

    Args:
        conv: The convolution.
        kernel: ``'shared'``: one filter of the convolution's size for all its channels; ``'pointwise'``: a 1x1 convolution.
    """

    is_policy = True

    def __init__(self, conv: nn.Conv2d, kernel: str) -> None:
        super().__init__()
        if kernel == 'shared':
            spacing = (conv.stride, conv.padding, conv.dilation)
            self.conv = nn.Conv2d(conv.in_channels, 1, conv.kernel_size, *spacing, bias=False)  # type: ignore[arg-type]
        else:
            self.conv = nn.Conv2d(conv.in_channels, conv.out_channels, 1, conv.stride, bias=False)  # type: ignore[arg-type]
        self.norm = nn.BatchNorm2d(self.conv.out_channels)
        nn.init.constant_(self.norm.weight, 0.25)  # begins near the plain convolution: everything on, factors around 1
        nn.init.ones_(self.norm.bias)
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        conv = self.conv
        if isinstance(self.norm, nn.Identity) and conv.bias is not None and self._is_score():  # folded
            return self.act(conv_scores(x, conv.weight, None, conv.bias, conv.stride[0]))
        return self.act(self.norm(conv(x)))

    def _is_score(self) -> bool:
        conv = self.conv
        side = conv.kernel_size[0]
        shape = (conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation)
        return shape == (1, (side, side), (conv.stride[0],) * 2, (side // 2,) * 2, (1, 1)) and side % 2 == 1


class CollaborativeGate(DynamicModule):
    """Multiplies each convolution of a residual branch by its collaborator, and computes it where that is not zero.

    A position is left out where all channels of the collaborator are at most the threshold, 0 unless a budget moves it.

    Args:
        block: The block that this gate will run; it is not kept.
        kernel: See :class:`Collaborator`.

    Raises:
        TypeError: The block's branch is no chain of plain convolutions with foldable normalisation.
    """

    def __init__(self, block: ResidualBlock, kernel: str) -> None:
        super().__init__()
        check_rows(block)
        layers = {}
        for i, unit in enumerate(block.units()):
            conv = unit.conv
            assert isinstance(conv, nn.Conv2d)
            # the layer beside a depthwise convolution, or a 1x1 one beside another, would cost as much as that
            if conv.groups == 1 and (kernel == 'shared' or conv.kernel_size != (1, 1)):
                layers[str(i)] = Collaborator(conv, kernel)
        self.layers = nn.ModuleDict(layers)
        self.decide = HardDecide(0.0)  # the gradient comes through the product
        self.rows = RowExecutor()

    def forward(self, block: ResidualBlock, x: Tensor) -> Tensor:
        """The block's output for its input ``x`` (B, C, H, W)."""
        self.check_execution()
        if self.execution == 'dense':
            return block.run(x)
        y, decided = self._masked(block, x) if self.execution == 'masked' else self._sparse(block, x)
        if recording():
            self._report(block, x, decided)
        return y

    def _masked(self, block: ResidualBlock, x: Tensor) -> tuple[Tensor, list[_Decided]]:
        # what sparse execution computes whole counts as whole
        ready = self.rows.prepared(block) if recording() and not self.training else None
        y, decided = x, []
        for i, unit in enumerate(block.units()):
            if str(i) not in self.layers:
                y = unit.run(y)
                continue
            factor, scores = self._collaborate(i, y)
            on = self.decide(scores)
            whole = ready is not None and _whole(ready, i, y, int(on.count_nonzero()), on.numel())
            decided.append(_Decided(i, scores, on, 0.0, whole))
            y = unit.run(y) * (on if factor is None else factor * on)
        return block.merge(block.run_shortcut(x), y), decided

    @torch.no_grad()
    def _sparse(self, block: ResidualBlock, x: Tensor) -> tuple[Tensor, list[_Decided]]:
        ready = self.rows.prepared(block)
        y = x = x.contiguous(memory_format=torch.channels_last)
        decided = []
        for i, unit in enumerate(ready.units):
            if str(i) not in self.layers:
                y = unit.run(y)
                continue
            factor, scores = self._collaborate(i, y)
            values, threshold = self.decide.cut(scores)
            rows = rows_above(values, threshold)
            whole = _whole(ready, i, y, rows.numel(), values.numel())
            decided.append(_Decided(i, scores, values, threshold, whole))
            if self.rows.watch is not None:
                self.rows.watch(ready.watched(i, y))
            if whole:
                y = unit.run(y)
                if factor is not None:
                    y = y.mul_(factor if rows.numel() == values.numel() else factor * (values > threshold))
            elif i + 1 == len(ready.units) and (factor is None or factor.shape[1] == 1):
                return add_last(block, ready, x, y, rows, factor), decided
            else:
                y = _at_rows(ready, i, y, rows, factor, tuple(values.shape))
        return block.merge(block.run_shortcut(x), y), decided

    def _collaborate(self, i: int, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """What multiplies convolution ``i`` with input ``x``, and a score a position.

        A control that switches all on or off stands for the plain convolution, or none: nothing multiplies it.
        """
        factor = self.layers[str(i)](x)
        scores = factor if factor.shape[1] == 1 else factor.amax(1, keepdim=True)
        return (None if self.decide.kind in ('all', 'none') else factor), scores

    def _report(self, block: ResidualBlock, x: Tensor, decided: list[_Decided]) -> None:
        units = block.units()
        sizes = layer_sizes(units, (x.shape[2], x.shape[3]))
        costs = [float(unit.conv.weight.numel()) for unit in units]  # type: ignore[operator, union-attr]
        dense = sum(cost * high * wide for cost, (high, wide) in zip(costs, sizes[1:], strict=True))
        policy, counts, saved = 0.0, [], x.new_zeros(len(x), dtype=torch.float32)
        for i, scores, values, threshold, whole in decided:
            on = (values > threshold).float()  # half precision cannot count
            if self.training:  # what is counted has the gradient of a smooth step, for budget losses
                step = torch.tanh(scores.float())
                on = on.detach() + (step - step.detach())
            counts.append(on.flatten(1))
            if not whole:
                saved = saved + costs[i] * (1 - counts[-1]).sum(1)
            weight = self.layers[str(i)].conv.weight  # type: ignore[union-attr]
            policy += float(weight.numel() * sizes[i + 1][0] * sizes[i + 1][1])  # type: ignore[operator]
        emit(
            self,
            dense_macs=dense,
            macs=dense - saved + policy,
            policy_macs=policy,
            density=torch.cat(counts, 1).mean(1),
            mask=(decided[-1].values > decided[-1].threshold).to(x.dtype),
            scores=torch.cat([each.scores.detach().flatten(1) for each in decided], 1),
        )


class _Decided(NamedTuple):
    """One convolution's decisions: on where ``values`` (B, 1, H', W') are above ``threshold``."""

    layer: int
    scores: Tensor
    values: Tensor
    threshold: float
    whole: bool


def _whole(ready: PreparedBranch, layer: int, x: Tensor, count: int, places: int) -> bool:
    """Whether a convolution with input ``x`` is computed whole, ``count`` of its output's ``places`` being on."""
    return 0 < count >= ready.limit(layer, (x.shape[2], x.shape[3])) * places


def _at_rows(
    ready: PreparedBranch, layer: int, x: Tensor, rows: Tensor, factor: Tensor | None, places: tuple[int, ...]
) -> Tensor:
    """Convolution ``layer`` times ``factor`` at ``rows``, zero elsewhere; ``places`` are (B, 1, H', W').

    The map of a layer that another one reads lives until the next call.
    """
    inner = layer + 1 < len(ready.chain.convs)
    conv = ready.chain.convs[layer] if inner else ready.alone
    shape = (places[0], conv.filters, *places[2:])
    x = x.contiguous(memory_format=torch.channels_last)
    out = scratch(layer % 2, shape, x) if inner else fresh(shape, x)
    # a factor is not negative, so that it may go through a ReLU
    fused = factor is not None and factor.shape[1] == 1 and conv.act in (None, 'relu')
    if rows.numel() < prod(places):
        out.zero_()
    run_rows(x, conv, rows, out, scale=factor if fused else None)
    return out if fused or factor is None else out.mul_(factor)


@hosted
def LCCL(network: nn.Module, kernel: str = 'shared') -> nn.Module:
    """Residual blocks whose convolutions are skipped where a low-cost layer beside them is zero.

    Args:
        network: The host.
        kernel: ``'shared'``: one filter of the convolution's size for all its channels, so that positions are skipped as a
            whole; ``'pointwise'``: a 1x1 convolution to all channels beside each larger convolution.

    Raises:
        ValueError: Another kernel, or no convolution that a collaborative layer is cheaper than.
        TypeError: A residual block that cannot be computed in part; the message says why.
    """
    if kernel not in KERNELS:
        raise ValueError(f'kernel={kernel!r} must be one of {", ".join(KERNELS)}')
    for blocks, _ in stages_of(network, 1):
        for block in blocks:
            gate = CollaborativeGate(block, kernel)
            if not gate.layers:
                raise ValueError(
                    f"kernel={kernel!r} is cheaper than no convolution of these blocks; use kernel='shared'"
                )
            block.decide_by(gate)
    return network
