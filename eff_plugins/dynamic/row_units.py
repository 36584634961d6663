"""Which layers and blocks can be computed at single positions of their output, and as what."""

from __future__ import annotations

import torch
from torch import nn

from eff_plugins.dynamic.residual import ResidualBlock, Unit, act_name
from eff_plugins.ops.blocks import pair
from eff_plugins.ops.dense import PackedConv2d
from eff_plugins.ops.fold import folded
from eff_plugins.ops.rows import ACTIVATIONS, RowConv, out_size


def row_conv(unit: Unit, act: str | None) -> RowConv:
    """A unit in evaluation mode, normalisation folded, as :class:`RowConv`."""
    conv, norm = unit.conv, unit.norm
    assert isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)
    if isinstance(norm, nn.modules.batchnorm._BatchNorm):
        weight, bias = folded(conv, norm)
    else:
        weight = conv.weight.detach()
        bias = torch.zeros_like(weight[:, 0, 0, 0]) if conv.bias is None else conv.bias.detach()
    spacing = (pair(conv.stride), pair(conv.padding), pair(conv.dilation))
    return RowConv(weight, bias, *spacing, conv.groups, act)


def layer_sizes(units: list[Unit], size: tuple[int, int]) -> list[tuple[int, int]]:
    """(height, width) of the input of a chain of units and of each one's output."""
    sizes = [size]
    for conv in (unit.conv for unit in units):
        assert isinstance(conv, nn.Conv2d) and not isinstance(conv.padding, str)
        spacing = (pair(conv.stride), pair(conv.padding), pair(conv.dilation))
        sizes.append(out_size(sizes[-1], pair(conv.kernel_size), *spacing))
    return sizes


def stride_of(block: ResidualBlock) -> int:
    """Stride of a block's branch, which :func:`check_rows` must accept."""
    check_rows(block)
    side = 64
    return -(-side // layer_sizes(block.units(), (side, side))[-1][0])


def check_rows(block: ResidualBlock) -> None:
    """Whether the branch of ``block`` can be computed at single positions.

    Raises:
        TypeError: It cannot; the message says why and what would.
    """
    act_name(block.act)
    units = block.units()
    for fault in map(fault_of, units):
        if fault is not None:
            raise TypeError(fault)
    if units[-1].act_name is not None:
        raise TypeError(
            f'the branch ends with an activation ({units[-1].act_name}) before the sum: rows are added to the shortcut as '
            'they are computed; LayerSkip takes any branch'
        )


def fault_of(unit: Unit) -> str | None:
    """Why a layer cannot be computed at single positions, and what could; None where it can."""
    conv, norm = unit.conv, unit.norm
    if type(conv) not in (nn.Conv2d, PackedConv2d) or not isinstance(conv.padding, tuple):
        return (
            f'{type(conv).__name__} in a residual branch cannot be computed at single positions; plain convolutions can'
        )
    if conv.padding_mode != 'zeros' or conv.groups not in (1, conv.in_channels):
        return (
            f'a convolution with groups={conv.groups}, padding_mode={conv.padding_mode!r} cannot be computed at single '
            'positions; one group, or one filter a channel, with zeros around can'
        )
    if (fault := norm_fault(norm)) is not None:
        return fault
    if unit.act_name not in ACTIVATIONS:
        known = ', '.join(name for name in ACTIVATIONS if name)
        return f'no kernel computes {unit.act_name} at single positions, but {known}; LayerSkip takes any branch'
    return None


def norm_fault(norm: nn.Module | None) -> str | None:
    """Why a normalisation cannot be applied to a part of a map; None where it can."""
    if norm is None or isinstance(norm, (nn.modules.batchnorm._BatchNorm, nn.Identity)):
        return None
    return f'{type(norm).__name__} depends on the whole map; a branch computed in part needs BatchNorm'


def computes_rows(block: ResidualBlock) -> bool:
    """Whether :func:`check_rows` has nothing against ``block``."""
    try:
        check_rows(block)
    except TypeError:
        return False
    return True
