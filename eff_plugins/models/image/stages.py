"""Stage tables: the description that the inverted-residual family is built from.

A static network, a scaled member of it and a searched subnet are the same kind of data. ``Network.from_dict`` reads the
``network`` part of an ``arch.json`` file; ``archs()`` gives the published members, whose tables are in ``efficient.py`` and
``mobile.py``.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from eff_plugins.naming import nearest

BLOCKS = ('inverted', 'fused', 'conv')


@dataclass(frozen=True)
class Stage:
    """``repeats`` blocks of one kind; the first has ``stride``, the others 1.

    Attributes:
        channels: Output channels of every block.
        repeats: Number of blocks.
        kernel: Side of the depthwise (``'inverted'``) or full (``'fused'``, ``'conv'``) kernel.
        stride: Stride of the first block.
        expand: Hidden channels as a multiple of the block's input channels; 1 means no expansion convolution (but see
            ``Network.expand_always``).
        block: ``'inverted'`` (1x1, depthwise, 1x1), ``'fused'`` (full kxk, 1x1; EfficientNetV2, section 3.2) or ``'conv'``
            (one kxk convolution; a fused block with nothing to expand).
        se: Squeeze-excite: squeezed channels as a share of ``Network.se_base``; 0 means none.
        act: Activation where it is not the network's.
        hidden: Hidden channels where they are no multiple of the input's; overrides ``expand``.
        groups: Groups of both 1x1 convolutions, with a channel shuffle between (FBNet's ``g2`` blocks).
        residual: Add the input where shapes allow.
    """

    channels: int
    repeats: int = 1
    kernel: int = 3
    stride: int = 1
    expand: float = 6
    block: str = 'inverted'
    se: float = 0.0
    act: str | None = None
    hidden: int | None = None
    groups: int = 1
    residual: bool = True

    def __post_init__(self) -> None:
        if self.block not in BLOCKS:
            raise ValueError(f'block={self.block!r} of a stage must be one of {", ".join(BLOCKS)}')


@dataclass(frozen=True)
class Network:
    """A network of the inverted-residual family.

    Attributes:
        stages: The stages in order.
        stem_channels: Channels of the first 3x3 convolution.
        stem_stride: Its stride.
        head_channels: Channels of the 1x1 convolution before the classifier's pooling (not part of a backbone).
        head_hidden: Channels of a linear layer after the pooling (MobileNetV3, Table 1); None means none.
        act: Activation, a key of ``eff_plugins.models.layers.conv.ACTIVATIONS``.
        padding: ``'symmetric'`` or ``'same'`` (TensorFlow's).
        norm_eps: Epsilon of BatchNorm.
        norm_momentum: Momentum of BatchNorm (PyTorch's convention).
        input_size: Published input side, pixels.
        expand_always: Blocks with ``expand=1`` have an expansion convolution, too (FBNet).
        hidden_divisor: A block's hidden channels are rounded to a multiple of it.
        round_limit: What is rounded to a multiple does not fall below this share (see :func:`round_channels`).
        se_base: Squeezed channels are a share of the block's ``'input'`` or ``'hidden'`` channels.
        se_divisor: They are rounded to a multiple of it.
        se_act: Activation between the two convolutions of squeeze-excite; None means the block's.
        se_gate: ``'sigmoid'`` or ``'hsigmoid'``.
    """

    stages: tuple[Stage, ...]
    stem_channels: int = 32
    stem_stride: int = 2
    head_channels: int = 1280
    head_hidden: int | None = None
    act: str = 'relu6'
    padding: str = 'symmetric'
    norm_eps: float = 1e-5
    norm_momentum: float = 0.1
    input_size: int = 224
    expand_always: bool = False
    hidden_divisor: int = 1
    round_limit: float = 0.9
    se_base: str = 'input'
    se_divisor: int = 1
    se_act: str | None = None
    se_gate: str = 'sigmoid'

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Network:
        """Build from plain data, as stored in ``arch.json`` (``network``) or written in a config.

        Raises:
            ValueError: A key is unknown or ``stages`` is missing or empty; the message names it.
        """
        check_keys(data, cls, 'network')
        stages = data.get('stages')
        if not stages:
            raise ValueError("a network description needs 'stages', a list of dict(channels=, repeats=, stride=, ...)")
        for stage in stages:
            check_keys(stage, Stage, 'stage')
        return cls(**{**data, 'stages': tuple(Stage(**stage) for stage in stages)})

    def to_dict(self) -> dict[str, Any]:
        """Plain data that ``from_dict`` reads back."""
        return asdict(self)


def check_keys(data: Mapping[str, Any], cls: type, what: str) -> None:
    """Raise ValueError, naming the key, where ``data`` has one that the dataclass ``cls`` lacks."""
    known = [f.name for f in fields(cls)]  # type: ignore[arg-type]
    for key in data:
        if key not in known:
            raise ValueError(f'unknown key {key!r} in a {what} description; known keys: {", ".join(known)}')


def round_channels(channels: float, divisor: int = 8, round_limit: float = 0.9) -> int:
    """Nearest multiple of ``divisor``, never below ``round_limit`` of ``channels`` (MobileNet's, EfficientNet's rule)."""
    rounded = max(divisor, int(channels + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < round_limit * channels else rounded


@cache
def archs() -> dict[str, Network]:
    """The published stage tables by name."""
    from eff_plugins.models.image import efficient, mobile

    return {**efficient.ARCHS, **mobile.ARCHS}


def resolve_arch(arch: str | Mapping[str, Any] | Network) -> Network:
    """The stage table behind ``arch``: a name in ``archs()`` or what :func:`resolve_description` reads."""
    return resolve_description(arch, archs(), Network, 'stages')


def resolve_description(arch: Any, known: Mapping[str, Any], cls: type, kind: str) -> Any:
    """The description of a network behind the argument ``arch`` of a backbone.

    Args:
        arch: A name in ``known``, the path of an ``arch.json`` file, a description as ``from_dict`` of ``cls`` reads it, or
            a ``cls``.
        known: The family's descriptions by name.
        cls: Class of the description.
        kind: What ``kind`` has to be in the file.

    Raises:
        ValueError: The name is unknown (the nearest names are given) or the description is faulty.
    """
    if isinstance(arch, cls):
        return arch
    if isinstance(arch, Mapping):
        return cls.from_dict(arch)  # type: ignore[attr-defined]
    if arch in known:
        return known[arch]
    if arch.endswith('.json'):
        content = json.loads(Path(arch).read_text())
        if content.get('kind') != kind:
            raise ValueError(f'{arch}: kind is {content.get("kind")!r}, this family reads {kind!r}')
        return cls.from_dict(content['network'])  # type: ignore[attr-defined]
    raise ValueError(f'unknown arch {arch!r}; nearest: {nearest(arch, known)}; known: {", ".join(known)}')
