"""mmcv's operators under autocast on a CPU, and on tensors in channels-last order.

mmcv's kernels read a tensor's memory as if it were contiguous. RoI align on a channels-last map, which ``ChannelsLastHook``
makes, gave other values without an error. All operators get contiguous tensors and gradients.

mmcv's CPU kernels (RoI align, NMS, deformable convolution ...) have no bf16 version and raise under ``--amp``. They run in
fp32 there, as torch's own autocast does for operators that need it; on CUDA nothing changes. mmdet's RoI extractors cast
the boxes to the type of the features, and bf16 holds a coordinate of 400 pixels to 2 pixels only, so they get fp32 features.
"""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable
from typing import Any

import torch

from .patching import patch_module


def _plain(value: Any) -> Any:
    return value.contiguous() if isinstance(value, torch.Tensor) else value


def _contiguous(function: Callable[..., Any]) -> Callable[..., Any]:
    """``forward`` or ``backward`` of an operator with every tensor in plain order; no copy where it is already."""

    @functools.wraps(function)
    def run(ctx: Any, *args: Any, **kwargs: Any) -> Any:
        return function(ctx, *map(_plain, args), **{key: _plain(value) for key, value in kwargs.items()})

    return run


def _patch(module: types.ModuleType) -> None:
    for name, part in list(sys.modules.items()):
        if not name.startswith(f'{module.__name__}.'):
            continue
        for cls in list(vars(part).values()):
            if not isinstance(cls, type) or not issubclass(cls, torch.autograd.Function) or cls.__module__ != name:
                continue
            for part_name in ('forward', 'backward'):
                method = cls.__dict__.get(part_name)
                if isinstance(method, staticmethod) and not hasattr(method.__func__, 'plain_order'):
                    function = _contiguous(method.__func__)
                    if part_name == 'forward' and hasattr(torch.amp, 'custom_fwd'):  # torch >= 2.4
                        function = torch.amp.custom_fwd(function, device_type='cpu', cast_inputs=torch.float32)
                    function.plain_order = True  # type: ignore[attr-defined]
                    setattr(cls, part_name, staticmethod(function))


def _features_to_fp32(extractor: torch.nn.Module, args: tuple) -> tuple:
    if not torch.is_autocast_enabled('cpu') or not args or not isinstance(args[0], (tuple, list)):
        return args
    return tuple(f.float() if f.device.type == 'cpu' else f for f in args[0]), *args[1:]


def _patch_extractor(module: types.ModuleType) -> None:
    base = getattr(module, 'BaseRoIExtractor', None)
    if base is None or hasattr(base.__init__, 'fp32_on_cpu'):
        return
    original = base.__init__

    def init(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        self.register_forward_pre_hook(_features_to_fp32)

    init.fp32_on_cpu = True  # type: ignore[attr-defined]
    base.__init__ = init


def install() -> None:
    """Make mmcv's operators work under a CPU's autocast and on channels-last tensors, now or when they are imported."""
    patch_module('mmcv.ops', _patch)
    patch_module('mmdet.models.roi_heads.roi_extractors.base_roi_extractor', _patch_extractor)
