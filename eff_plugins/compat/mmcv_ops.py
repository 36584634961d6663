"""mmcv's operators under autocast on a CPU.

mmcv's CPU kernels (RoI align, NMS, deformable convolution ...) have no bf16 version and raise under ``--amp``. They run in
fp32 there, as torch's own autocast does for operators that need it; on CUDA nothing changes.
"""

from __future__ import annotations

import sys
import types

import torch

from .patching import patch_module


def _patch(module: types.ModuleType) -> None:
    if not hasattr(torch.amp, 'custom_fwd'):  # torch < 2.4
        return
    for name, part in list(sys.modules.items()):
        if not name.startswith(f'{module.__name__}.'):
            continue
        for cls in list(vars(part).values()):
            if not isinstance(cls, type) or not issubclass(cls, torch.autograd.Function) or cls.__module__ != name:
                continue
            forward = cls.__dict__.get('forward')
            if isinstance(forward, staticmethod) and not hasattr(forward.__func__, 'cast_on_cpu'):
                cast = torch.amp.custom_fwd(forward.__func__, device_type='cpu', cast_inputs=torch.float32)
                cast.cast_on_cpu = True
                cls.forward = staticmethod(cast)  # type: ignore[method-assign,assignment]


def install() -> None:
    """Make mmcv's operators work under ``torch.autocast('cpu')``, now or when they are imported."""
    patch_module('mmcv.ops', _patch)
