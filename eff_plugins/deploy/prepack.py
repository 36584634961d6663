"""Pack the convolutions' weights once and fuse activations and sums: the fastest dense form on a CPU short of compilation."""

from __future__ import annotations

from typing import Any

from torch import nn

from eff_plugins.dynamic.residual import ResidualBlock, act_name, hooked
from eff_plugins.models.layers.conv import SamePadConv2d
from eff_plugins.ops.dense import PackedConv2d, PackedSamePadConv2d

from .fuse import pairs


def prepack(model: nn.Module) -> nn.Module:
    """Replace every plain convolution of ``model`` by a :class:`PackedConv2d`, in place; returns the model.

    An activation that reads a convolution and nothing else becomes part of it. Residual blocks add their shortcut in the
    last convolution. BatchNorm should have been folded before (:func:`fuse_conv_bn`).

    Args:
        model: In eval mode, for inference on a CPU.
    """
    for parent in list(model.modules()):
        for conv_name, act_path in pairs(parent, _is_plain, _is_activation):
            conv, act = parent.get_submodule(conv_name), parent.get_submodule(act_path)
            _put(parent, conv_name, _packed(conv, act_name(act)))
            _put(parent, act_path, nn.Identity())
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if _is_plain(child):
                setattr(parent, name, _packed(child))
    for block in model.modules():
        if isinstance(block, ResidualBlock):
            block.fuses = _fuses(block)
    return model


def _packed(conv: Any, act: str | None = None) -> PackedConv2d:
    return (PackedSamePadConv2d if isinstance(conv, SamePadConv2d) else PackedConv2d)(conv, act)


def _is_plain(module: nn.Module | None) -> bool:
    if type(module) is SamePadConv2d:
        return True
    return type(module) is nn.Conv2d and isinstance(module.padding, tuple) and module.padding_mode == 'zeros'


def _is_activation(module: nn.Module | None) -> bool:
    try:
        return module is not None and act_name(module) is not None
    except TypeError:
        return False


def _put(parent: nn.Module, path: str, module: nn.Module) -> None:
    holder, _, name = path.rpartition('.')
    setattr(parent.get_submodule(holder), name, module)


def _fuses(block: ResidualBlock) -> bool:
    try:
        units = block.units()
        act_name(block.act)
    except TypeError:  # something that is no chain of convolutions runs as it is
        return False
    if hooked(block):
        return False
    if units[-1].act_name is not None:  # before the sum, where nothing fuses it with the shortcut
        return False
    return all(isinstance(u.conv, PackedConv2d) and (u.norm is None or isinstance(u.norm, nn.Identity)) for u in units)
