"""Key table of GoogLeNet in torchvision's checkpoints (without the auxiliary classifiers)."""

from __future__ import annotations

from eff_plugins.hub.convert import Keys

# our stage -> names of torchvision's blocks; a stage's first entry is its pooling
_BLOCKS = {0: ('conv2', 'conv3'), 1: ('3a', '3b'), 2: ('4a', '4b', '4c', '4d', '4e'), 3: ('5a', '5b')}
# their convolutions in an Inception block -> ours
_PATHS = {
    'branch1': '0.0',
    'branch2.0': '1.0',
    'branch2.1': '1.1',
    'branch3.0': '2.0',
    'branch3.1': '2.1',
    'branch4.1': '3.1',
}


def keys(name: str, source: str) -> Keys:
    """See :func:`eff_plugins.hub.convert.keys`."""
    if source != 'tv' or name != 'googlenet_tv':
        raise ValueError(f'there is no key table for {name} in checkpoints of {source}')
    pairs = {'conv1': 'backbone.stem'}
    for stage, blocks in _BLOCKS.items():
        for place, block in enumerate(blocks, start=1):
            ours = f'backbone.stages.{stage}.{place}'
            if stage == 0:
                pairs[block] = ours
            else:
                for theirs, path in _PATHS.items():
                    pairs[f'inception{block}.{theirs}'] = f'{ours}.branch.paths.{path}'
    table = {'fc': 'head.fc'}
    for theirs, ours in pairs.items():
        table[f'{theirs}.conv'], table[f'{theirs}.bn'] = f'{ours}.conv', f'{ours}.norm'
    return Keys(table, {0: 'conv1', 1: 'conv3', 2: 'inception3b', 3: 'inception4e', 4: 'inception5b'}, ('aux1', 'aux2'))
