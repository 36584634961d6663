"""Every named image network of the suite: what it is built from, what was published about it, what it is checked against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from typing import Any

from eff_plugins.models.image.stages import Network
from eff_plugins.naming import nearest

# Modules with a table VARIANTS: name -> Variant
FAMILIES = ('.mobile', '.efficient', '.googlenet', '.shufflenet', '.resnext', '.regnet')


@dataclass(frozen=True)
class Variant:
    """A named network.

    Attributes:
        family: Name of its file in ``eff_plugins/hub/convert``.
        backbone: Config of the backbone without ``out_indices``.
        last_index: Out index of the map that the classifier's head reads.
        head: Arguments of ``LinearClsHead`` but ``in_channels`` and ``num_classes``.
        input_size: Published side of the input, pixels.
        params: Published parameters of the classifier with 1000 classes, millions.
        macs: Published multiply-adds of one picture of ``input_size``, billions.
        source: Where ``params`` and ``macs`` are published.
        oracle: The same network elsewhere, ``'timm:NAME'`` or ``'tv:NAME'`` (torchvision); None where there is none.
    """

    family: str
    backbone: Mapping[str, Any]
    params: float
    macs: float
    source: str
    input_size: int = 224
    last_index: int = 4
    head: Mapping[str, Any] = field(default_factory=dict)
    oracle: str | None = None


def stage_head(network: Network) -> dict[str, Any]:
    """Arguments of ``LinearClsHead`` that follow from a stage table."""
    return dict(
        hidden_channels=network.head_channels,
        pooled_channels=network.head_hidden,
        act=network.act,
        norm_cfg=dict(type='BN', eps=network.norm_eps, momentum=network.norm_momentum),
    )


def stage_variant(name: str, network: Network, params: float, macs: float, source: str, oracle: str | None) -> Variant:
    """The row of a network of the inverted-residual family; its head follows from the stage table."""
    return Variant(
        family='inverted_residual',
        backbone=dict(type='eff_plugins.InvertedResidualNet', arch=name),
        params=params,
        macs=macs,
        source=source,
        input_size=network.input_size,
        head=stage_head(network),
        oracle=oracle,
    )


@cache
def variants() -> dict[str, Variant]:
    """Every variant by name, sorted."""
    found: dict[str, Variant] = {}
    for module in FAMILIES:
        table = import_module(module, __package__).VARIANTS
        twice = sorted(found.keys() & table.keys())
        if twice:
            raise RuntimeError(f'{module} names variants that another family has: {", ".join(twice)}')
        found.update(table)
    return dict(sorted(found.items()))


def variant(name: str) -> Variant:
    """The variant of a name.

    Raises:
        ValueError: Unknown name; the nearest are given.
    """
    known = variants()
    if name not in known:
        name = str(name)
        raise ValueError(
            f'unknown model {name!r}; nearest: {nearest(name, known)}; eff_plugins.list_models() lists all'
        )
    return known[name]


def variant_of(backbone: Mapping[str, Any]) -> str | None:
    """The variant whose backbone a config describes, or None; the one with the most arguments in common.

    Args:
        backbone: Config with every argument that tells variants apart.
    """
    fitting = [
        name
        for name, row in variants().items()
        if all(backbone.get(key) == value for key, value in row.backbone.items())
    ]
    return max(fitting, key=lambda name: len(variant(name).backbone), default=None)
