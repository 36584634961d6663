"""The suite's dynamic types as cases of :mod:`eff_plugins.testing.conformance`; the tests fail for a type that is missing.

A label starts with the type; what follows names the host, where there is more than one.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from eff_plugins.compat import MissingExtraError
from eff_plugins.dynamic.module import DynamicModule
from eff_plugins.models.spatial.host import hosted
from eff_plugins.registry import TYPES
from eff_plugins.testing.conformance import Case


def dynamic_types() -> set[str]:
    """Registered models whose module makes use of a dynamic module; those that need a missing framework are left out."""
    found = set()
    for name, path in TYPES['model'].items():
        try:
            used = vars(import_module(path, 'eff_plugins')).values()
        except MissingExtraError:
            continue
        if any(value is hosted or (isinstance(value, type) and issubclass(value, DynamicModule)) for value in used):
            found.add(name)
    return found


def on_resnet(kind: str, host: dict | None = None, **options: Any) -> Case:
    """A method on a narrow ResNet of the given arguments, ResNet-50 by default."""
    arguments = {'depth': 50, 'base_channels': 8, **(host or {})}
    return Case(
        dict(type=f'eff_plugins.{kind}', **arguments, **options),
        dict(type='eff_plugins.ResNet', **arguments),
        shape=(3, 3, 104, 97),
        odd=(131, 97),
    )


def on(kind: str, backbone: dict, shape: tuple[int, ...], odd: tuple[int, int], **options: Any) -> Case:
    """A method on any backbone of the suite."""
    return Case(dict(type=f'eff_plugins.{kind}', backbone=backbone, **options), backbone, shape, odd)


CIFAR: dict[str, Any] = dict(backbone=dict(type='eff_plugins.CifarResNet', depth=14), shape=(3, 3, 32, 32), odd=(29, 35))
MOBILE: dict[str, Any] = dict(
    backbone=dict(
        type='eff_plugins.InvertedResidualNet',
        arch=dict(
            stages=[dict(channels=8, repeats=3, expand=2, stride=2), dict(channels=12, repeats=3, stride=2, expand=2)],
            stem_channels=8,
        ),
        out_indices=(1, 2),
    ),
    shape=(3, 3, 64, 48),
    odd=(65, 49),
)
RESNEXT = dict(type='eff_plugins.ResNeXt', arch=dict(depths=(2, 1, 2, 1), cardinality=2, width=8))
CAFFE = dict(style='caffe', strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))

DYNAMIC: dict[str, Case] = {
    'LASNet': on_resnet('LASNet'),
    'LASNet on ResNet-18': on_resnet('LASNet', dict(depth=18), granularity=(4, 4, 2, 1)),
    'LASNet on CifarResNet': on('LASNet', **CIFAR, granularity=(4, 2, 2)),
    'LASNet on InvertedResidualNet': on('LASNet', **MOBILE, granularity=(4, 2)),
    'DynConv': on_resnet('DynConv'),
    'DynConv on a dilated ResNet': on_resnet('DynConv', CAFFE),
    'DynConv on InvertedResidualNet': on('DynConv', **MOBILE),
    'LayerSkip': on_resnet('LayerSkip'),
    'LayerSkip on ResNeXt': on('LayerSkip', RESNEXT, (4, 3, 64, 64), (65, 71)),
    'LayerSkip on InvertedResidualNet': on('LayerSkip', **MOBILE),
}
