"""The model of a framework's full config, for configs that bring their own data set and schedule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config, ConfigDict


def host_model(config: str, changes: Mapping[str, Any]) -> ConfigDict:
    """The ``model`` of a framework's config with ``changes`` merged in.

    Many of the frameworks' methods exist as full configs only; as a ``_base_`` these would clash with any other base that
    brings data or a schedule. mmengine takes a file with imports for one of its lazy configs unless the file
    assigns ``_base_`` first, so a config that calls this begins with ``_base_ = []``.

    Args:
        config: A path inside an installed framework, such as ``mmdet::fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py``.
        changes: Merged as a config over its base: nested dicts merge, ``_delete_=True`` replaces. A dict where the base has
            a list (a cascade's heads) is merged into each of its items.

    Raises:
        FileNotFoundError: The framework has no such config.
        KeyError: The config has no ``model``.
    """
    cfg = Config.fromstring(f'_base_ = {config!r}\n', '.py')
    if 'model' not in cfg:
        raise KeyError(f'{config} has no model; name a full config or one of _base_/models')
    cfg.merge_from_dict({'model': _for_each_item(changes, cfg.model)})
    return cfg.model


def _for_each_item(changes: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """``changes`` with index keys, as mmengine's merge wants them, where ``base`` has a list."""
    expanded: dict[str, Any] = {}
    for key, value in changes.items():
        former = base.get(key)
        if isinstance(value, Mapping) and isinstance(former, (list, tuple)):
            value = {str(i): _for_each_item(value, item) for i, item in enumerate(former)}
        elif isinstance(value, Mapping) and isinstance(former, Mapping):
            value = _for_each_item(value, former)
        expanded[key] = value
    return expanded
