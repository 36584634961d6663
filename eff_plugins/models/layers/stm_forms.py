"""Descriptions of split-transform-merge blocks, and the published blocks as functions that return one.

A block is ``y = x + merge_i T_i(split_i(x))``: what each path receives, the steps of each transform, how the results are
put together. :class:`Block` says so as data; ``FORMS`` maps a name to the function that describes a published block for
given channels, kernel, stride and dilation. :mod:`eff_plugins.models.layers.split_transform_merge` executes it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Conv:
    """Convolution with symmetric padding, then normalisation and activation: H' = ceil(H / stride).

    Attributes:
        channels: Output channels.
        kernel: Odd side of the kernel.
        stride: Stride.
        groups: Groups of the convolution.
        dilation: Spacing of the kernel's taps.
        act: A key of ``ACTIVATIONS``, or None.
        norm: Normalise; otherwise the convolution has a bias if ``bias`` says so.
        bias: See ``norm``.
    """

    channels: int
    kernel: int = 1
    stride: int = 1
    groups: int = 1
    dilation: int = 1
    act: str | None = 'relu'
    norm: bool = True
    bias: bool = False


@dataclass(frozen=True)
class Pool:
    """Pooling with padding kernel // 2; ``kind`` is ``'max'`` or ``'avg'`` (padded zeros count)."""

    kind: str = 'max'
    kernel: int = 3
    stride: int = 1


@dataclass(frozen=True)
class Excite:
    """Squeeze-excite with ``channels`` between its two convolutions."""

    channels: int
    act: str = 'relu'
    gate: str = 'sigmoid'


@dataclass(frozen=True)
class Shuffle:
    """Channel shuffle between ``groups`` groups."""

    groups: int


Step: TypeAlias = Conv | Pool | Excite | Shuffle
_STEPS: dict[str, type] = {'conv': Conv, 'pool': Pool, 'se': Excite, 'shuffle': Shuffle}


@dataclass(frozen=True)
class Block:
    """``act(x + shuffle(merge_i T_i(split_i(x))))``.

    Attributes:
        paths: The steps of each transform; an empty one hands its input on.
        split: Channels that each path receives, in order; None gives all channels to every path.
        merge: ``'concat'`` or ``'sum'`` of the paths' results.
        residual: Add the block's input.
        shuffle: Groups of a channel shuffle after the merge; 1 means none.
        act: Activation at the end, or None.

    Raises:
        ValueError: A part has no such value, or the parts do not fit together.
    """

    paths: tuple[tuple[Step, ...], ...]
    split: tuple[int, ...] | None = None
    merge: str = 'concat'
    residual: bool = False
    shuffle: int = 1
    act: str | None = None

    def __post_init__(self) -> None:
        if not self.paths or self.paths == ((),):
            raise ValueError('a block needs at least one path with a step in it')
        if self.merge not in ('concat', 'sum'):
            raise ValueError(f"merge={self.merge!r} must be 'concat' or 'sum'")
        if self.split is not None and len(self.split) != len(self.paths):
            raise ValueError(f'split={self.split} names {len(self.split)} parts for {len(self.paths)} paths')

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Block:
        """Build from plain data, as written in a config: steps are ``dict(type='conv', channels=32, kernel=3, ...)``.

        Raises:
            ValueError: An unknown key or step type; the message names it and what is known.
        """
        _check_keys(data, cls, 'block')
        paths = tuple(tuple(_step(step) for step in path) for path in data.get('paths', ()))
        split = data.get('split')
        return cls(**{**data, 'paths': paths, 'split': None if split is None else tuple(split)})

    def with_linear_output(self, bias: bool) -> Block:
        """The same block without normalisation and activation after each path's last convolution and after the merge."""
        paths = []
        for path in self.paths:
            last = max((i for i, step in enumerate(path) if isinstance(step, Conv)), default=None)
            paths.append(
                tuple(
                    replace(step, norm=False, act=None, bias=bias) if i == last and isinstance(step, Conv) else step
                    for i, step in enumerate(path)
                )
            )
        return replace(self, paths=tuple(paths), act=None)


def _check_keys(data: Mapping[str, Any], cls: type, what: str) -> None:
    known = [f.name for f in fields(cls)]
    for key in data:
        if key not in known:
            raise ValueError(f'unknown key {key!r} in the description of a {what}; known keys: {", ".join(known)}')


def _step(data: Mapping[str, Any]) -> Step:
    args = dict(data)
    kind = args.pop('type', None)
    if kind not in _STEPS:
        raise ValueError(f'a step of type {kind!r} is unknown; known types: {", ".join(_STEPS)}')
    _check_keys(args, _STEPS[kind], f'{kind} step')
    return _STEPS[kind](**args)


@dataclass(frozen=True)
class Site:
    """What a form is asked for: (B, in_channels, H, W) -> (B, out_channels, ceil(H / stride), ceil(W / stride))."""

    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    dilation: int = 1

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same shape, so that they can be added."""
        return self.stride == 1 and self.in_channels == self.out_channels

    def filter(self, channels: int, kernel: int | None = None, **conv: Any) -> Conv:
        """The convolution that has the site's kernel (or another), stride and dilation."""
        return Conv(channels, kernel or self.kernel, self.stride, dilation=self.dilation, **conv)


def grouped(site: Site, groups: int = 2, act: str | None = 'relu', norm: bool = False) -> Block:
    """Grouped convolution: each group of input channels feeds its own output channels.

    Source: Krizhevsky et al., NIPS 2012, section 3.5, with two groups, a bias and no normalisation.
    """
    return Block(((site.filter(site.out_channels, groups=groups, act=act, norm=norm, bias=not norm),),))


def inception(
    site: Site, widths: Sequence[int] | None = None, large_kernel: int | None = None, act: str | None = 'relu'
) -> Block:
    """1x1, 1x1 + kxk, 1x1 + (k+2)x(k+2) and 3x3 max pooling + 1x1 next to each other.

    Source: Szegedy et al., CVPR 2015, figure 2(b).

    Args:
        site: Where the block stands; its stride is that of the 1x1, the two filters and the pooling.
        widths: Channels (1x1, reduction before kxk, kxk, reduction before the large kernel, large kernel, pooling).
            By default shared out as in block 3a: out_channels times (4, 6, 8, 1, 2, 2) / 16.
        large_kernel: In place of k + 2.
        act: Activation of every convolution.
    """
    if widths is None:
        if site.out_channels % 16:
            raise ValueError(f"form 'inception': out_channels={site.out_channels} is no multiple of 16; give widths=")
        widths = [site.out_channels * share // 16 for share in (4, 6, 8, 1, 2, 2)]
    if large_kernel is not None and large_kernel % 2 == 0:
        raise ValueError(f"form 'inception': large_kernel={large_kernel} must be odd")
    if len(widths) != 6:
        raise ValueError(f"form 'inception': widths={tuple(widths)} must have 6 entries")
    one, reduce_mid, mid, reduce_large, large, pooled = widths
    return Block(
        (
            (Conv(one, stride=site.stride, act=act),),
            (Conv(reduce_mid, act=act), site.filter(mid, act=act)),
            (Conv(reduce_large, act=act), site.filter(large, large_kernel or site.kernel + 2, act=act)),
            (Pool(stride=site.stride), Conv(pooled, act=act)),
        )
    )


def resnext(
    site: Site, groups: int = 32, hidden: int | None = None, act: str | None = 'relu', residual: bool = True
) -> Block:
    """1x1, grouped kxk, 1x1, added to the input where shapes allow.

    The grouped convolution computes the sum of ``groups`` parallel transforms (figure 3 of the paper).

    Source: Xie et al., CVPR 2017.

    Args:
        site: Where the block stands.
        groups: Number C of the parallel transforms.
        hidden: Channels of all of them together; by default half of out_channels.
        act: Activation.
        residual: Add the input where its shape is the output's.
    """
    hidden = hidden or site.out_channels // 2
    path = (Conv(hidden, act=act), site.filter(hidden, groups=groups, act=act), Conv(site.out_channels, act=None))
    return Block((path,), residual=residual and site.keeps_shape, act=act)


def depthwise_separable(site: Site, act: str | None = 'relu') -> Block:
    """Depthwise kxk, 1x1. Source: Howard et al., "MobileNets", 2017, figure 3."""
    return Block(((site.filter(site.in_channels, groups=site.in_channels, act=act), Conv(site.out_channels, act=act)),))


def shufflenet_v1(
    site: Site,
    groups: int = 3,
    first_groups: int | None = None,
    hidden: int | None = None,
    act: str | None = 'relu',
    residual: bool = True,
) -> Block:
    """Grouped 1x1, shuffle, depthwise kxk, grouped 1x1; at stride 2 next to the average-pooled input.

    Source: Zhang et al., CVPR 2018, figure 2(b) and (c). Where a stride does not go with more channels, the pooled input
    is added, not concatenated.

    Args:
        site: Where the block stands.
        groups: Groups of both 1x1 convolutions.
        first_groups: Of the first one, where it differs (1 in the first unit of the published network).
        hidden: Channels of the depthwise convolution; by default a quarter of out_channels.
        act: Activation.
        residual: Add the input where its shape is the output's.
    """
    hidden = hidden or site.out_channels // 4
    pools = site.stride > 1
    concat = pools and site.out_channels > site.in_channels
    if pools and site.out_channels < site.in_channels:
        raise ValueError(
            f"form 'shufflenet_v1': at stride {site.stride} out_channels={site.out_channels} must not be below "
            f'in_channels={site.in_channels}, which are passed on'
        )
    own = site.out_channels - site.in_channels if concat else site.out_channels
    path: list[Step] = [Conv(hidden, groups=groups if first_groups is None else first_groups, act=act)]
    if groups > 1:
        path.append(Shuffle(groups))
    path += [site.filter(hidden, groups=hidden, act=None), Conv(own, groups=groups, act=None)]
    if pools:
        return Block(((Pool('avg', stride=site.stride),), tuple(path)), merge='concat' if concat else 'sum', act=act)
    return Block((tuple(path),), residual=residual and site.keeps_shape, act=act)


def shufflenet_v2(site: Site, act: str | None = 'relu') -> Block:
    """Half of the channels pass by, the others go through 1x1, depthwise kxk, 1x1; concatenation and shuffle.

    Where shapes change, both halves of the output are computed from all input channels.

    Source: Ma et al., ECCV 2018, figure 3(c) and (d).
    """
    if site.out_channels % 2:
        raise ValueError(f"form 'shufflenet_v2': out_channels={site.out_channels} must be even, one half a path")
    half = site.out_channels // 2
    path = (Conv(half, act=act), site.filter(half, groups=half, act=None), Conv(half, act=act))
    if site.keeps_shape:
        return Block(((), path), split=(half, half), shuffle=2)
    first = (site.filter(site.in_channels, groups=site.in_channels, act=None), Conv(half, act=act))
    return Block((first, path), shuffle=2)


def _excite(site: Site, se: float, act: str, gate: str) -> list[Excite]:
    if se < 0:
        raise ValueError(f'se={se} must not be negative: it is a share of the input channels, 0 for none')
    return [Excite(max(1, round(site.in_channels * se)), act, gate)] if se else []


def mbconv(
    site: Site, expand: float = 4, se: float = 0.25, act: str = 'swish', gate: str = 'sigmoid', residual: bool = True
) -> Block:
    """1x1 expansion, depthwise kxk, squeeze-excite, linear 1x1, added to the input where shapes allow.

    Source: Sandler et al., CVPR 2018, with squeeze-excite as in Tan et al., CVPR 2019.

    Args:
        site: Where the block stands.
        expand: Hidden channels as a multiple of in_channels; 1 leaves the expansion out.
        se: Squeezed channels as a share of in_channels; 0 leaves squeeze-excite out.
        act: Activation.
        gate: A key of ``GATES``.
        residual: Add the input where its shape is the output's.
    """
    hidden = int(site.in_channels * expand)
    path: list[Step] = [Conv(hidden, act=act)] if hidden != site.in_channels else []
    path += [site.filter(hidden, groups=hidden, act=act), *_excite(site, se, act, gate)]
    return Block(((*path, Conv(site.out_channels, act=None)),), residual=residual and site.keeps_shape)


def fused_mbconv(
    site: Site, expand: float = 4, se: float = 0.0, act: str = 'swish', gate: str = 'sigmoid', residual: bool = True
) -> Block:
    """Full kxk expansion, squeeze-excite, linear 1x1, added to the input where shapes allow; options as in ``mbconv``.

    Source: Tan & Le, "EfficientNetV2", ICML 2021, figure 2.
    """
    path: list[Step] = [site.filter(int(site.in_channels * expand), act=act), *_excite(site, se, act, gate)]
    return Block(((*path, Conv(site.out_channels, act=None)),), residual=residual and site.keeps_shape)


FORMS: dict[str, Callable[..., Block]] = {
    'grouped': grouped,
    'inception': inception,
    'resnext': resnext,
    'depthwise_separable': depthwise_separable,
    'shufflenet_v1': shufflenet_v1,
    'shufflenet_v2': shufflenet_v2,
    'mbconv': mbconv,
    'fused_mbconv': fused_mbconv,
}
