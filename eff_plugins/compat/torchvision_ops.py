"""torchvision's PyPI wheel beside a CPU build of torch.

The wheel's compiled part is built for CUDA and does not load there. torchvision tolerates that, except that it registers
shape functions of two operators, whose names then do not exist: ``import torchvision`` raises RuntimeError, and with it
timm and whatever tries to import timm (mmseg). With the names declared, everything but the compiled operators works.
"""

from __future__ import annotations

import importlib.util
import types
from pathlib import Path

from ..files import atomic
from .patching import patch_module

_MARK = '# Added by eff_plugins.repair_hosts:'
# Executed in torchvision/extension.py, before the shape functions are registered.
DECLARE = f"""
{_MARK} torch is a CPU build, the compiled operators of this wheel are not; with their names
# declared, the rest of torchvision imports.
if not _has_ops() and not hasattr(torch.ops.torchvision, 'nms'):
    _names = torch.library.Library('torchvision', 'DEF')
    for _name in ('nms', 'qnms'):
        _names.define(_name + '(Tensor dets, Tensor scores, float iou_threshold) -> Tensor')
"""


def _declare(module: types.ModuleType) -> None:
    exec(DECLARE, module.__dict__)


def install() -> None:
    """Let torchvision import on a CPU build of torch, wherever ``eff_plugins`` was imported before it."""
    patch_module('torchvision.extension', _declare)


def repair_torchvision() -> str:
    """Write :data:`DECLARE` into an installed torchvision, for processes that import it first; returns what was done.

    Raises:
        OSError: The environment cannot be written.
    """
    import torch

    spec = importlib.util.find_spec('torchvision')
    if spec is None or spec.origin is None:
        return 'torchvision is not installed, nothing to repair'
    if torch.version.cuda is not None or torch.version.hip is not None:
        return 'torch is no CPU build, torchvision is left alone'
    target = Path(spec.origin).parent / 'extension.py'
    text = target.read_text()
    if _MARK in text:
        return 'torchvision is repaired already'
    with atomic(target) as partial:
        partial.write_text(text + DECLARE)
    return f'declared the operator names that torchvision lacks on a CPU build of torch: {target}'
