"""The residual block as dynamic networks see it: layers that may be left out beside a shortcut that stays."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eff_plugins.ops.dense import PackedConv2d

# What an activation module is called by the kernels that fuse it; the keys of ops.rows.ACTIVATIONS.
_ACT_NAMES: dict[type[nn.Module], str] = {
    nn.ReLU: 'relu',
    nn.ReLU6: 'relu6',
    nn.Hardswish: 'hswish',
    nn.SiLU: 'swish',
}


class Unit(NamedTuple):
    """One layer of a branch: convolution, normalisation and activation; the last two may be None."""

    conv: nn.Module
    norm: nn.Module | None = None
    act: nn.Module | None = None

    def run(self, x: Tensor) -> Tensor:
        """Apply what is there, in order."""
        x = self.conv(x)
        if self.norm is not None:
            x = self.norm(x)
        return x if self.act is None else self.act(x)

    @property
    def act_name(self) -> str | None:
        """The activation's name for kernels that fuse it; a packed convolution may have it built in."""
        if isinstance(self.conv, PackedConv2d) and self.conv.act is not None:
            return self.conv.act
        return act_name(self.act)


class ResidualBlock(nn.Module):
    """``y = act(shortcut(x) + branch(x))``: (B, C, H, W) -> (B, C', H', W').

    A subclass says what its branch consists of (``units``) and, where they differ from these, its shortcut
    (``run_shortcut``) and what follows the sum (``act``). The slot ``dynamic`` takes a
    :class:`~eff_plugins.dynamic.module.DynamicModule`, which then computes the block in its stead. As policies are children
    of that slot, all other keys stay those of the static block.

    Attributes:
        dynamic: None, or what is called as ``dynamic(block, x)``.
        has_shortcut: Whether there is a sum; without one the block is its branch.
        act: Activation of the sum, or None.
        owns_input: Nothing else reads ``x`` afterwards, so that it may be overwritten where no gradient is recorded.
        nonnegative: ``x`` has no negative values, so that ``act`` leaves it as it is.
        with_cp: Recompute the branch in the backward pass where a dynamic module runs the block; a host recomputes whole
            static blocks itself.
        fuses: All convolutions of the branch are :class:`~eff_plugins.ops.dense.PackedConv2d`, for inference.
    """

    act: nn.Module | None  # a subclass sets it
    owns_input = False
    nonnegative = False
    with_cp = False
    fuses = False

    def __init__(self) -> None:
        super().__init__()
        self.dynamic: Any = None
        self.has_shortcut = True

    def units(self) -> list[Unit]:
        """The layers of the branch, in order.

        Raises:
            TypeError: The branch is no chain of convolutions with normalisation and activation.
        """
        raise NotImplementedError

    def shortcut_units(self) -> list[Unit]:
        """The layers of the shortcut, in order, where they are a chain of convolutions; else none."""
        return []

    def run_shortcut(self, x: Tensor) -> Tensor:
        """What is added to the branch."""
        return x

    def run_branch(self, x: Tensor) -> Tensor:
        """The branch alone, its last convolution without the activation of the sum."""
        for unit in self.units():
            x = unit.run(x)
        return x

    def masked_branch(self, x: Tensor) -> Tensor:
        """The branch for masked execution, recomputed in the backward pass where ``with_cp`` says so.

        Decisions lie outside of what is recomputed: they are drawn, and reported, once.
        """
        if self.with_cp and torch.is_grad_enabled() and x.requires_grad:
            return checkpoint(self.run_branch, x, use_reentrant=False)
        return self.run_branch(x)

    def masked(self, x: Tensor, on: Tensor) -> Tensor:
        """The block in masked execution: its branch multiplied by ``on``, such as (B, 1, H', W') or (B, 1, 1, 1)."""
        return self.merge(self.run_shortcut(x), self.masked_branch(x) * on)

    def run(self, x: Tensor) -> Tensor:
        """The static block."""
        if self.fuses and self.has_shortcut:
            shortcut, units = self.run_shortcut(x), self.units()
            for unit in units[:-1]:
                x = unit.conv.fused(x, unit.act_name)  # type: ignore[operator]
            return units[-1].conv.fused(x, act_name(self.act), shortcut)  # type: ignore[operator]
        y = self.run_branch(x)
        return self.merge(self.run_shortcut(x), y) if self.has_shortcut else y

    def merge(self, shortcut: Tensor, branch: Tensor) -> Tensor:
        """Their sum, activated."""
        y = add_residual(shortcut, branch)
        return y if self.act is None else self.act(y)

    def settled(self) -> bool:
        """Whether ``act`` leaves an input of the block as it is."""
        return self.nonnegative and act_name(self.act) == 'relu'

    def rest(self, x: Tensor, shortcut: Tensor) -> Tensor:
        """The block where its branch is left out: its shortcut, activated; ``x`` itself where that changes nothing."""
        if self.act is None or (shortcut is x and self.settled()):
            return shortcut
        # a module that works in place must not touch x
        return self.act(shortcut.clone() if shortcut is x else shortcut)

    def decide_by(self, gate: nn.Module) -> None:
        """Let ``gate`` compute the block in its stead.

        Raises:
            ValueError: The block has one, or something hooks into its parts.
        """
        if hooked(self):
            raise ValueError(
                f'something hooks into the parts of {type(self).__name__}, as TemporalShift does: parts of it, or some '
                'samples of a batch, cannot be computed alone'
            )
        if self.dynamic is not None:
            raise ValueError(
                f'{type(self.dynamic).__name__} decides for this block already: a network hosts one spatial method'
            )
        self.dynamic = gate

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x) if self.dynamic is None else self.dynamic(self, x)


def add_residual(x: Tensor, branch: Tensor) -> Tensor:
    """``x + branch``, of one shape; written over ``branch``, which nothing else may read, where no gradient is recorded.

    At inference such an addition costs memory traffic alone, and a fresh tensor adds a third to it.
    """
    fresh = torch.is_grad_enabled() or branch.dtype != x.dtype  # autocast: the sum has the wider type
    return x + branch if fresh else branch.add_(x)


def hooked(block: nn.Module) -> bool:
    """Whether forward hooks sit on modules inside ``block``: then these have to be called as they are."""
    return any(part._forward_hooks or part._forward_pre_hooks for part in block.modules() if part is not block)


def run_block(block: nn.Module, x: Tensor, with_cp: bool) -> Tensor:
    """One block of a host, recomputed in the backward pass where ``with_cp``; a dynamic one recomputes its branch alone."""
    if with_cp and x.requires_grad and getattr(block, 'dynamic', None) is None:
        return checkpoint(block, x, use_reentrant=False)
    return block(x)


def residual_blocks(model: nn.Module) -> Iterator[tuple[str, ResidualBlock]]:
    """Name and module of every block of ``model`` that has a shortcut."""
    for name, module in model.named_modules():
        if isinstance(module, ResidualBlock) and module.has_shortcut:
            yield name, module


def parse_units(layers: Iterable[nn.Module]) -> list[Unit]:
    """Group a chain of layers into units, looking into plain sequences.

    Raises:
        TypeError: Something in it is neither convolution, normalisation nor activation; the message names it.
    """
    units: list[Unit] = []
    for layer in _flat(layers):
        last = units[-1] if units else None
        if isinstance(layer, nn.Conv2d):
            units.append(Unit(layer))
        elif isinstance(layer, nn.Identity):
            continue
        elif last is not None and last.act is None and type(layer) in _ACT_NAMES:
            units[-1] = last._replace(act=layer)
        elif last is not None and last.norm is None and last.act is None and _is_norm(layer):
            units[-1] = last._replace(norm=layer)
        else:
            raise TypeError(
                f'{type(layer).__name__} in a residual branch: a branch that is computed in part must be a chain of '
                'convolutions, normalisations and activations (no squeeze-excite, no shuffle)'
            )
    return units


def _flat(layers: Iterable[nn.Module]) -> Iterator[nn.Module]:
    for layer in layers:
        if isinstance(layer, nn.Sequential):
            yield from _flat(layer)
        else:
            yield layer


def _is_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


def act_name(act: nn.Module | None) -> str | None:
    """The name by which kernels fuse ``act``; None for none.

    Raises:
        TypeError: An activation that no kernel fuses.
    """
    if act is None or isinstance(act, nn.Identity):
        return None
    if type(act) not in _ACT_NAMES:
        names = ', '.join(kind.__name__ for kind in _ACT_NAMES)
        raise TypeError(f'activation {type(act).__name__} in a residual block; known: {names}')
    return _ACT_NAMES[type(act)]
