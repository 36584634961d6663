"""Layer skipping: one decision a residual block and sample, the coarsest granularity of spatial dynamic networks.

The gate follows SkipNet (Wang et al., ECCV 2018) in reading the pooled input of the block, and is trained as in ConvNet-AIG
(Veit & Belongie, ECCV 2018) with a straight-through Gumbel sample instead of reinforcement learning.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from eff_plugins.dynamic.module import DynamicModule, MacsOf
from eff_plugins.dynamic.policies import Decide
from eff_plugins.dynamic.recorder import emit, recording

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
        return self.fc(x.mean((2, 3)))[:, :, None, None]


class SkippedBranch(DynamicModule):
    """A residual branch that is computed for some samples of a batch and left out for the others.

    It takes the place of the branch inside its block, so the block's input is added as before: for a sample whose branch
    is left out the block passes its input on. The branch's layers keep their names, so the keys are those of the static
    block plus ``gate.*``.

    Args:
        branch: (B, C, H, W) -> the same shape.
        channels: C.

    Raises:
        TypeError: ``branch`` is no plain sequence of layers.
    """

    def __init__(self, branch: nn.Module, channels: int) -> None:
        super().__init__()
        if type(branch) is not nn.Sequential:
            raise TypeError(f'a branch that may be skipped must be an nn.Sequential, this is {type(branch).__name__}')
        self._layers = [name for name, _ in branch.named_children()]
        for name, layer in branch.named_children():
            self.add_module(name, layer)
        self.gate = PooledGate(channels)
        self.decide = Decide()
        self._macs_of = MacsOf()

    def forward(self, x: Tensor) -> Tensor:
        self.check_execution()
        if self.execution == 'dense':
            return self._branch(x)
        scores = self.gate(x)
        on = self.decide(scores)
        if recording():
            self._report(x, scores, on)
        if self.execution == 'masked':
            return self._branch(x) * on
        return self._sparse(x, on.flatten() > 0)

    def _branch(self, x: Tensor) -> Tensor:
        for name in self._layers:
            x = self._modules[name](x)  # type: ignore[misc]
        return x

    def _report(self, x: Tensor, scores: Tensor, on: Tensor) -> None:
        layers = nn.Sequential(*(self._modules[name] for name in self._layers))  # type: ignore[arg-type]
        dense, gate = self._macs_of(layers, tuple(x.shape[1:])), float(x.shape[1])
        density = on.flatten(1).mean(1)
        emit(
            self,
            dense_macs=dense,
            macs=density * dense + gate,
            policy_macs=gate,
            density=density,
            mask=on.detach(),
            scores=scores.detach(),
        )

    def _sparse(self, x: Tensor, on: Tensor) -> Tensor:
        if bool(on.all()):
            return self._branch(x)
        out = torch.zeros_like(x)
        if bool(on.any()):
            out[on] = self._branch(x[on])
        return out


def skip_layers(model: Model, keep_first: int = 0) -> Model:
    """Let every residual block of ``model`` decide whether to compute its branch, in place.

    Blocks are those that declare ``has_residual`` and ``branch``, as the suite's backbones do.

    Args:
        model: A backbone of the suite, or a model that contains one.
        keep_first: Blocks at the beginning that stay static.

    Returns:
        The same model.

    Raises:
        ValueError: No block is left to skip.
    """
    blocks: list[Any] = [block for block in model.modules() if getattr(block, 'has_residual', False)]
    if len(blocks) <= keep_first:
        raise ValueError(
            f'{type(model).__name__} has {len(blocks)} residual blocks, keep_first={keep_first} leaves none to skip'
        )
    for block in blocks[keep_first:]:
        block.branch = SkippedBranch(block.branch, _out_channels(block.branch))
    return model


def _out_channels(branch: nn.Module) -> int:
    """Channels that a branch returns: those of its last convolution."""
    return [module for module in branch.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
