"""Computation-efficient vision plug-ins for the OpenMMLab frameworks.

Importing the package needs torch, mmengine and numpy only; everything below is imported when first used.
"""

import sys
from importlib import import_module

from . import compat
from .version import __version__

# These commands say what is missing and get it, so they run without it: python -m eff_plugins.collect_env
_SETUP = {f'{__name__}.{command}' for command in ('collect_env', 'build_mmcv', 'repair_hosts')}
try:
    compat.apply()
except compat.MissingExtraError:
    if _SETUP.isdisjoint(sys.orig_argv[1:3]):
        raise

_LAZY = {
    'DRNet': '.models.resolution.drnet',
    'EarlyExitClassifier': '.models.resolution.ranet',
    'InvertedResidualNet': '.models.image.inverted_residual',
    'LayerSkip': '.models.spatial.layer_skip',
    'RANet': '.models.resolution.ranet',
    'RegNet': '.models.image.regnet',
    'ResNeXt': '.models.image.resnext',
    'ScaleAwareDetector': '.models.resolution.safd',
    'TemporalShift': '.models.video.temporal_shift',
    'TimmBackbone': '.models.image.timm_backbone',
    'adapt': '.config_adapter',
    'calibrate': '.dynamic',
    'get_model': '.hub',
    'list_models': '.hub',
    'record': '.dynamic',
    'set_budget': '.dynamic',
    'set_execution': '.dynamic',
    'set_policy': '.dynamic',
}
__all__ = ['__version__', *_LAZY]


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(_LAZY[name], __name__), name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
