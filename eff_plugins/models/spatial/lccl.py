"""LCCL: Dong et al., "More is Less: A More Complicated Network with Less Inference Complexity", CVPR 2017.

Written from the paper.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.module import DynamicModule
from eff_plugins.dynamic.policies import HardDecide
from eff_plugins.dynamic.recorder import emit, recording
from eff_plugins.dynamic.residual import ResidualBlock
from eff_plugins.dynamic.rows import PreparedBranch, RowExecutor, check_rows
from eff_plugins.models.spatial.host import hosted, stages_of
from eff_plugins.ops.rows import run_rows
from eff_plugins.ops.scores import conv_scores

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
        self.act = nn.ReLU()

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
        self.rows = RowExecutor(summed=False)

    def forward(self, block: ResidualBlock, x: Tensor) -> Tensor:
        """The block's output for its input ``x`` (B, C, H, W)."""
        self.check_execution()
        if self.execution == 'dense':
            return block.run(x)
        sparse = self.execution == 'sparse'
        # what is computed whole counts as whole, in masked evaluation, too
        ready = self.rows.prepared(block) if sparse or (recording() and not self.training) else None
        y, dense, policy = x, 0.0, 0.0
        decided: list[tuple[Tensor, Tensor, float]] = []  # scores, what is on, multiply-adds saved where it is not
        for i, unit in enumerate(block.units()):
            a_position = float(unit.conv.weight.numel())  # type: ignore[operator, union-attr]
            if str(i) not in self.layers:
                y = unit.run(y)
                dense += a_position * y.shape[2] * y.shape[3]
                continue
            layer = self.layers[str(i)]
            factor = layer(y)
            scores = factor.amax(1, keepdim=True)
            on = self.decide(scores)
            # a control that switches all on or off stands for the plain convolution, or none
            factor = on if self.decide.kind in ('all', 'none') else factor * on
            dense += a_position * on.shape[2] * on.shape[3]
            policy += float(layer.conv.weight.numel() * on.shape[2] * on.shape[3])  # type: ignore[union-attr, operator]
            whole = ready is not None and _reaches(on, ready.limit(i, (y.shape[2], y.shape[3])))
            decided.append((scores, on, 0.0 if whole else a_position))
            if ready is None or not sparse:
                y = unit.run(y) * factor
            else:
                y = self._computed(ready, i, y, None if whole else on).mul_(factor)
        if recording():
            self._report(dense, policy, decided)
        return block.merge(block.run_shortcut(x), y)

    @torch.no_grad()
    def _computed(self, ready: PreparedBranch, i: int, x: Tensor, on: Tensor | None) -> Tensor:
        """A fresh map: convolution ``i`` at the positions that are on, zero elsewhere; None: everywhere."""
        if self.rows.watch is not None:
            self.rows.watch(ready.watched(i, tuple(x.shape)))
        if on is None:
            return ready.units[i].run(x)
        x = x.contiguous(memory_format=torch.channels_last)
        conv, rows = ready.chain.convs[i], on.flatten().nonzero().flatten().int()
        shape = (x.shape[0], conv.filters, *on.shape[2:])
        out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last).zero_()
        return run_rows(x, conv, rows, out) if rows.numel() else out

    def _report(self, dense: float, policy: float, decided: list[tuple[Tensor, Tensor, float]]) -> None:
        counts, saved = [], decided[0][1].new_zeros(len(decided[0][1]), dtype=torch.float32)
        for scores, on, a_position_off in decided:
            on = on.float()  # half precision cannot count
            if self.training:  # what is counted has the gradient of a smooth step, for budget losses
                step = torch.tanh(scores.float())
                on = on.detach() + (step - step.detach())
            counts.append(on.flatten(1))
            saved = saved + a_position_off * (1 - counts[-1]).sum(1)
        emit(
            self,
            dense_macs=dense,
            macs=dense - saved + policy,
            policy_macs=policy,
            density=torch.cat(counts, 1).mean(1),
            mask=decided[-1][1].detach(),
            scores=torch.cat([scores.detach().flatten(1) for scores, _, _ in decided], 1),
        )


def _reaches(on: Tensor, density: float) -> bool:
    return int(on.count_nonzero()) >= min(density, 1.0) * on.numel()


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
