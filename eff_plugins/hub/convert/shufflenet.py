"""Key table of ShuffleNet V2 in torchvision's checkpoints."""

from __future__ import annotations

from eff_plugins.hub.convert import Keys
from eff_plugins.models.image.shufflenet import REPEATS

# number of a convolution in their branches (its normalisation follows it) -> our path and place in it
_FIRST_BRANCH = {0: '0.0', 2: '0.1'}
_SECOND_BRANCH = {0: '1.0', 3: '1.1', 5: '1.2'}


def keys(name: str, source: str) -> Keys:
    """See :func:`eff_plugins.hub.convert.keys`."""
    if source != 'tv' or not name.startswith('shufflenetv2_'):
        raise ValueError(f'there is no key table for {name} in checkpoints of {source}')
    table = {'fc': 'head.fc'}

    def conv_norm(theirs: str, at: int, ours: str) -> None:
        table[f'{theirs}.{at}'], table[f'{theirs}.{at + 1}'] = f'{ours}.conv', f'{ours}.norm'

    conv_norm('conv1', 0, 'backbone.stem')
    conv_norm('conv5', 0, 'head.conv')
    for stage, repeats in enumerate(REPEATS):
        for unit in range(repeats):
            theirs, ours = f'stage{stage + 2}.{unit}', f'backbone.stages.{stage + 1}.{unit}.branch.paths'
            for at, place in _SECOND_BRANCH.items():
                conv_norm(f'{theirs}.branch2', at, f'{ours}.{place}')
            if unit == 0:
                for at, place in _FIRST_BRANCH.items():
                    conv_norm(f'{theirs}.branch1', at, f'{ours}.{place}')
    return Keys(table, {0: 'conv1', 1: 'maxpool', 2: 'stage2', 3: 'stage3', 4: 'stage4'})
