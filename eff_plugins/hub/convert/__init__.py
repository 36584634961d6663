"""Key tables between published checkpoints and this suite's modules: one file a family, usable both ways.

A family's file has ``keys(name, source)``: the :class:`Keys` of the variant ``name`` in checkpoints of ``source``
(``'timm'``, ``'tv'`` or ``'pypi'``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module

from torch import Tensor

from eff_plugins.models.image.zoo import variant


@dataclass(frozen=True)
class Keys:
    """How one published network names what an ``ImageClassifier`` of the suite has.

    Attributes:
        prefixes: Module path in the checkpoint -> module path in our classifier (``backbone. ...``, ``head. ...``).
        maps: Out index of our backbone -> module of the published network whose output is that map.
    """

    prefixes: dict[str, str]
    maps: dict[int, str] = field(default_factory=dict)

    def inverse(self) -> dict[str, str]:
        """Our module path -> theirs."""
        return {ours: theirs for theirs, ours in self.prefixes.items()}


def keys(name: str, source: str) -> Keys:
    """The key table of a variant in checkpoints of ``source``.

    Raises:
        ValueError: The family has no table for that source.
    """
    return import_module(f'.{variant(name).family}', __name__).keys(name, source)


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
