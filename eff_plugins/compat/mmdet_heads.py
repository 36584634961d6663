"""mmdet 3.3.0's SSD cannot predict.

Its common prediction code asks ``self.loss_cls`` for class channels of its own, but ``SSDHead`` computes its loss without
such a module and has no attribute of that name (open-mmlab/mmdetection#11063, #11780). None is the answer that it needs.
"""

from __future__ import annotations

import types

from .patching import patch_module


def _patch(module: types.ModuleType) -> None:
    if not hasattr(module.SSDHead, 'loss_cls'):
        module.SSDHead.loss_cls = None


def install() -> None:
    """Let ``SSDHead`` predict, now or when mmdet is imported."""
    patch_module('mmdet.models.dense_heads.ssd_head', _patch)
