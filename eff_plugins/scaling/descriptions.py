"""What the rules scale: descriptions of networks as data, with their input size, that build classifiers."""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from eff_plugins.models.image.efficient import scale_stages
from eff_plugins.models.image.regnet import ARCHS as REGNETS
from eff_plugins.models.image.regnet import RegNetSpec, fit_groups, regnet_head, regnet_stages
from eff_plugins.models.image.stages import Network, resolve_arch, round_channels
from eff_plugins.models.image.zoo import stage_head, variants
from eff_plugins.naming import nearest
from eff_plugins.scaling.rules import Factors, Rounding

_SMALLEST_SIZE = 32  # pixels: one pixel is left at stride 32


@dataclass(frozen=True)
class Description(ABC):
    """A network as data. Equal descriptions build equal networks."""

    kind: ClassVar[str]

    @property
    @abstractmethod
    def input_size(self) -> int:
        """Side of the input, pixels."""

    @abstractmethod
    def scaled(self, factors: Factors, rounding: Rounding) -> Description:
        """The network with repeats, channels and input side multiplied and rounded."""

    @abstractmethod
    def resized(self, input_size: int) -> Description:
        """The same network for another input side."""

    @abstractmethod
    def network(self) -> dict[str, Any]:
        """Plain data, the ``network`` of an ``arch.json``."""

    @abstractmethod
    def model(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Config of the backbone, and the head's but type and classes."""

    def classifier(self, num_classes: int = 1000) -> nn.Module:
        """An ``ImageClassifier`` in eval mode, as constructed; no weights are loaded."""
        from eff_plugins.registry import MODELS

        backbone, head = self.model()
        head = dict(type='LinearClsHead', num_classes=num_classes, **head)
        return MODELS.build(dict(type='ImageClassifier', backbone=backbone, head=head)).eval()

    def arch(self) -> dict[str, Any]:
        """Content of an ``arch.json``, without ``search``."""
        return dict(kind=self.kind, network=self.network(), input_size=self.input_size)


def _scaled_size(size: int, factors: Factors, rounding: Rounding) -> int:
    multiple = rounding.size_multiple
    return max(_SMALLEST_SIZE, round(size * factors.resolution / multiple) * multiple)


@dataclass(frozen=True)
class StageTable(Description):
    """A network of the inverted-residual family."""

    kind: ClassVar[str] = 'stages'
    table: Network

    @property
    def input_size(self) -> int:
        return self.table.input_size

    def scaled(self, factors: Factors, rounding: Rounding) -> StageTable:
        table = self.table

        def widen(channels: int) -> int:
            return round_channels(channels * factors.width, round_limit=rounding.round_limit)

        head = widen(table.head_channels)
        hidden = table.head_hidden and widen(table.head_hidden)
        if not rounding.narrow_head:
            head, hidden = max(head, table.head_channels), table.head_hidden and max(hidden or 0, table.head_hidden)
        return StageTable(
            replace(
                table,
                stages=scale_stages(
                    table.stages,
                    factors.width,
                    factors.depth,
                    rounding=rounding.repeats,
                    round_limit=rounding.round_limit,
                ),
                stem_channels=widen(table.stem_channels) if rounding.stem else table.stem_channels,
                head_channels=head,
                head_hidden=hidden,
                input_size=_scaled_size(table.input_size, factors, rounding),
            )
        )

    def resized(self, input_size: int) -> StageTable:
        return StageTable(replace(self.table, input_size=input_size))

    def network(self) -> dict[str, Any]:
        return self.table.to_dict()

    def model(self) -> tuple[dict[str, Any], dict[str, Any]]:
        stride = self.table.stem_stride * math.prod(stage.stride for stage in self.table.stages)
        last = stride.bit_length() - 2  # level 0 has stride 2
        backbone = dict(type='eff_plugins.InvertedResidualNet', arch=self.table.to_dict(), out_indices=(last,))
        return backbone, dict(in_channels=self.table.stages[-1].channels, **stage_head(self.table))


@dataclass(frozen=True)
class RegNetTable(Description):
    """A RegNet. Scaling turns its rule of widths into stages; stem and head keep their channels, as in the paper's code."""

    kind: ClassVar[str] = 'regnet'
    spec: RegNetSpec

    @property
    def input_size(self) -> int:
        return self.spec.input_size

    def scaled(self, factors: Factors, rounding: Rounding) -> RegNetTable:
        stages = tuple(
            fit_groups(
                round_channels(stage.channels * factors.width, round_limit=rounding.round_limit),
                max(1, rounding.repeats(stage.depth * factors.depth)),
                scaled_group_width(stage.group_width, factors.groups or factors.width),
                self.spec,
            )
            for stage in regnet_stages(self.spec)
        )
        return RegNetTable(
            replace(self.spec, stages=stages, input_size=_scaled_size(self.spec.input_size, factors, rounding))
        )

    def resized(self, input_size: int) -> RegNetTable:
        return RegNetTable(replace(self.spec, input_size=input_size))

    def network(self) -> dict[str, Any]:
        return self.spec.to_dict()

    def model(self) -> tuple[dict[str, Any], dict[str, Any]]:
        stages = regnet_stages(self.spec)
        # index 0 has stride 4, and each stage doubles the stride
        backbone = dict(type='eff_plugins.RegNet', arch=self.spec.to_dict(), out_indices=(len(stages) - 1,))
        return backbone, dict(in_channels=stages[-1].channels, **regnet_head(self.spec))


def scaled_group_width(group_width: int, width: float) -> int:
    """Group width scaled as the channels are: up to 2 as it comes, then 4, then multiples of 8 (as in the paper's code)."""
    wished = max(1, round(group_width * width))
    if wished <= 2:
        return wished
    return 4 if wished <= 5 else round(wished / 8) * 8


def read_base(base: str) -> Description:
    """The description of a named network or of an ``arch.json``.

    Args:
        base: A name of ``eff_plugins.list_models()`` whose family is described by data, or a path that ends in ``.json``.

    Raises:
        ValueError: Unknown name (the nearest that can be scaled are given), or one that has no description.
        FileNotFoundError: There is no such file.
    """
    if base.endswith('.json'):
        path = Path(base)
        if not path.is_file():
            raise FileNotFoundError(f'{base}: no such arch file')
        content = json.loads(path.read_text())
        return _described(content.get('kind'), content.get('network'), base)
    known = variants()
    scalable = [name for name, row in known.items() if _kind(row.backbone) is not None]
    if base not in scalable:
        why = 'has no description that the rules can scale' if base in known else 'unknown'
        raise ValueError(f'base {base!r}: {why}; nearest: {nearest(base, scalable)}')
    return _described(_kind(known[base].backbone), known[base].backbone['arch'], base)


def _kind(backbone: Any) -> str | None:
    """Which description a variant's backbone is built from."""
    kinds = {'InvertedResidualNet': 'stages', 'RegNet': 'regnet'}
    return kinds.get(str(backbone['type']).removeprefix('eff_plugins.'))


def _described(kind: str | None, network: Any, base: str) -> Description:
    if kind == 'stages':
        return StageTable(resolve_arch(network))
    if kind == 'regnet':
        return RegNetTable(REGNETS[network] if isinstance(network, str) else RegNetSpec.from_dict(network))
    raise ValueError(f"{base}: kind is {kind!r}, the rules scale 'stages' and 'regnet'")


def on_meta(description: Description) -> tuple[nn.Module, torch.Tensor]:
    """The classifier and one picture on the meta device: nothing is allocated or computed."""
    with torch.device('meta'):
        size = description.input_size
        return description.classifier(), torch.empty(1, 3, size, size)
