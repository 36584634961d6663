"""Write ``published.json`` from the metadata of timm and torchvision: ``python -m eff_plugins.hub.sources --write``.

A variant has the weights of its oracle and of the networks in :data:`ALSO`. Left out are weights with another number of
classes than 1000 and those that are evaluated on squashed pictures.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eff_plugins.compat import require
from eff_plugins.models.image.zoo import variant, variants

from .weights import Weights

TABLE = Path(__file__).with_name('published.json')

# The same network, map by map, under another name than the oracle's (tests/hub proves it).
ALSO: dict[str, str] = {
    'mobilenetv2_100': 'timm:mobilenetv2_100',
    'mnasnet_a1': 'timm:semnasnet_100',
    'mnasnet_b1': 'timm:mnasnet_100',
    'efficientnet_b0': 'timm:efficientnet_b0',
    'efficientnet_b1': 'timm:efficientnet_b1',
    'efficientnet_b2': 'timm:efficientnet_b2',
    'efficientnet_b3': 'timm:efficientnet_b3',
    'efficientnet_b4': 'timm:efficientnet_b4',
}


def _scaled(values: Sequence[float]) -> tuple[float, float, float]:
    """From the range 0-1 to 0-255."""
    red, green, blue = (round(255 * value, 4) for value in values)
    return red, green, blue


def _timm_rows(name: str) -> Iterator[Weights]:
    registry = require('timm.models', 'hub.sources')
    default = registry.get_pretrained_cfg(name)
    configs = [registry.get_pretrained_cfg(f'{name}.{tag}') for tag in _tags(registry, name)]
    for cfg in sorted(configs, key=lambda c: c.tag != (default and default.tag)):
        if cfg.num_classes != 1000 or cfg.crop_mode != 'center' or not (cfg.hf_hub_id or cfg.url):
            continue
        hashed = re.search(r'-[0-9a-f]{8,}\.\w+$', cfg.url or '')
        hub = f'https://huggingface.co/{cfg.hf_hub_id}/resolve/main/model.safetensors'
        side = (cfg.test_input_size or cfg.input_size)[-1]
        yield Weights(
            source='timm',
            name=f'{name}.{cfg.tag}',
            url=cfg.url if hashed or not cfg.hf_hub_id else hub,
            licence=cfg.license,
            mean=_scaled(cfg.mean),
            std=_scaled(cfg.std),
            resize=math.floor(side / (cfg.test_crop_pct or cfg.crop_pct)),
            crop=side,
            interpolation=cfg.interpolation,
        )


def _tags(registry: Any, name: str) -> list[str]:
    """Tags of a timm network that have weights."""
    return [full.partition('.')[2] for full in registry.list_pretrained(f'{name}.*')]


def _tv_rows(name: str) -> Iterator[Weights]:
    found = require('torchvision', 'hub.sources').models.get_model_weights(name)
    for entry in sorted(found, key=lambda e: e is not found.DEFAULT):
        preset = entry.transforms()
        # GoogLeNet's weights come from TensorFlow: torchvision's model maps its input to mean and std 0.5 itself.
        own = name == 'googlenet'
        yield Weights(
            source='tv',
            name=f'{name}/{entry.name}',
            url=entry.url,
            licence='cc-by-nc-4.0' if 'SWAG' in entry.name else 'bsd-3-clause',
            mean=_scaled([0.5] * 3 if own else preset.mean),
            std=_scaled([0.5] * 3 if own else preset.std),
            resize=preset.resize_size[0],
            crop=preset.crop_size[0],
            interpolation=preset.interpolation.value,
        )


def _norm_eps(model: nn.Module) -> float | None:
    found = {module.eps for module in model.modules() if isinstance(module, nn.BatchNorm2d)}
    return found.pop() if len(found) == 1 else None


def _eps_of(name: str, oracle: str) -> float | None:
    """Epsilon of the oracle's BatchNorms where it is not the variant's."""
    from eff_plugins.hub import build_classifier
    from eff_plugins.testing.oracles import build_oracle

    with torch.device('meta'):
        own = _norm_eps(build_classifier(name))
    other = _norm_eps(build_oracle(oracle))  # torchvision's RegNet computes with real tensors while it is built
    return other if other != own else None


def rows_of(name: str) -> list[Weights]:
    """The rows of a variant, read from timm and torchvision.

    Raises:
        MissingExtraError: timm or torchvision is not installed.
    """
    rows = []
    for oracle in (variant(name).oracle, ALSO.get(name)):
        if oracle is not None:
            source, _, other = oracle.partition(':')
            found = list(_timm_rows(other) if source == 'timm' else _tv_rows(other))
            if found:
                eps = _eps_of(name, oracle)
                rows += [replace(row, norm_eps=eps) for row in found]
    return rows


def text_of(table: dict[str, list[Weights]]) -> str:
    """The table as JSON, a line for each row."""
    groups = []
    for name, rows in table.items():
        lines = [json.dumps({k: v for k, v in asdict(row).items() if v is not None}) for row in rows]
        groups.append(f'  {json.dumps(name)}: [\n    ' + ',\n    '.join(lines) + '\n  ]')
    return '{\n' + ',\n'.join(groups) + '\n}\n'


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the table; the exit status is 1 where it is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--write', action='store_true', help='write published.json; without it, it is only compared')
    args = parser.parse_args(argv)
    text = text_of({name: rows for name in variants() if (rows := rows_of(name))})
    if args.write:
        TABLE.write_text(text)
    elif text != TABLE.read_text():
        print(f'{TABLE} differs from timm and torchvision: python -m eff_plugins.hub.sources --write', file=sys.stderr)
        return 1
    return 0


if __name__ == '__main__':
    sys.exit(main())
