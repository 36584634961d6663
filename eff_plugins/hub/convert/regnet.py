"""Key tables of RegNetX, RegNetY and RegNetZ: timm and torchvision."""

from __future__ import annotations

from dataclasses import dataclass

from eff_plugins.hub.convert import Keys
from eff_plugins.models.image.regnet import ARCHS, regnet_stages
from eff_plugins.models.image.zoo import variant


@dataclass(frozen=True)
class _Names:
    """What a source calls the parts: stem, stage ``{i}``, block ``{j}`` of it (from 0), a block's parts, the last layer."""

    stem: str
    stage: str
    block: str
    parts: dict[str, str]
    conv: str
    norm: str
    shortcut: str
    fc: str


_TIMM = _Names(
    stem='stem',
    stage='s{i}',
    block='s{i}.b{k}',
    parts={'enter': 'conv1', 'filter': 'conv2', 'se': 'se', 'leave': 'conv3'},
    conv='conv',
    norm='bn',
    shortcut='downsample',
    fc='head.fc',
)
_TV = _Names(
    stem='stem',
    stage='trunk_output.block{i}',
    block='trunk_output.block{i}.block{i}-{j}',
    parts={'enter': 'f.a', 'filter': 'f.b', 'se': 'f.se', 'leave': 'f.c'},
    conv='0',
    norm='1',
    shortcut='proj',
    fc='fc',
)


def keys(name: str, source: str) -> Keys:
    """See :func:`eff_plugins.hub.convert.keys`."""
    names = {'timm': _TIMM, 'tv': _TV}.get(source)
    if names is None:
        raise ValueError(f'there is no key table for {name} in checkpoints of {source}')
    spec = ARCHS[variant(name).backbone['arch']]
    table = {names.fc: 'head.fc'}

    def conv_norm(theirs: str, ours: str) -> None:
        table[f'{theirs}.{names.conv}'], table[f'{theirs}.{names.norm}'] = f'{ours}.conv', f'{ours}.norm'

    conv_norm(names.stem, 'backbone.stem')
    if spec.head_channels:
        conv_norm('final_conv', 'head.conv')
    for i, stage in enumerate(regnet_stages(spec)):
        for j in range(stage.depth):
            theirs, ours = names.block.format(i=i + 1, j=j, k=j + 1), f'backbone.stages.{i}.{j}'
            for part in ('enter', 'filter', 'leave'):
                conv_norm(f'{theirs}.{names.parts[part]}', f'{ours}.branch.{part}')
            if spec.se_ratio:
                table[f'{theirs}.{names.parts["se"]}.fc1'] = f'{ours}.branch.se.reduce'
                table[f'{theirs}.{names.parts["se"]}.fc2'] = f'{ours}.branch.se.expand'
            if j == 0 and not spec.inverted:
                conv_norm(f'{theirs}.{names.shortcut}', f'{ours}.shortcut')
    return Keys(table, {i: names.stage.format(i=i + 1) for i in range(4)})
