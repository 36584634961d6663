"""Key table of ResNet and ResNeXt; torchvision and timm use the same names."""

from __future__ import annotations

from eff_plugins.hub.convert import Keys
from eff_plugins.models.image.resnext import ARCHS
from eff_plugins.models.image.zoo import variant


def keys(name: str, source: str) -> Keys:
    """See :func:`eff_plugins.hub.convert.keys`."""
    if source not in ('tv', 'timm'):
        raise ValueError(f'there is no key table for {name} in checkpoints of {source}')
    table = {'conv1': 'backbone.stem.conv', 'bn1': 'backbone.stem.norm', 'fc': 'head.fc'}
    for i, depth in enumerate(ARCHS[variant(name).backbone['arch']].depths):
        for j in range(depth):
            theirs, ours = f'layer{i + 1}.{j}', f'backbone.stages.{i}.{j}'
            for number, part in enumerate(('enter', 'filter', 'leave'), 1):
                table[f'{theirs}.conv{number}'] = f'{ours}.branch.{part}.conv'
                table[f'{theirs}.bn{number}'] = f'{ours}.branch.{part}.norm'
        table[f'layer{i + 1}.0.downsample.0'] = f'backbone.stages.{i}.0.shortcut.conv'
        table[f'layer{i + 1}.0.downsample.1'] = f'backbone.stages.{i}.0.shortcut.norm'
    return Keys(table, {i: f'layer{i + 1}' for i in range(4)})
