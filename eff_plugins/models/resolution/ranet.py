"""RANet: sub-networks from low to high resolution, each with several exits.

Source: Yang et al., "Resolution Adaptive Networks for Efficient Inference", CVPR 2020, https://arxiv.org/abs/2003.07326;
numbers that the paper leaves open (first layers, classifiers, widths) from the authors' yangle15/RANet-pytorch (no licence;
facts alone).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn

from eff_plugins.dynamic.exits import EarlyExit, ExitPoint, Held, Survivors
from eff_plugins.models.classifiers import ClsHead, ImageClassifier
from eff_plugins.models.layers.conv import ConvNormAct, init_conv_norm
from eff_plugins.registry import MODELS

BN = dict(type='BN')


def _resize(x: Tensor, size: Sequence[int]) -> Tensor:
    """(B, C, H, W) -> (B, C, *size), bilinear between corners; nothing to do where it has that size."""
    if x.shape[2:] == torch.Size(size):
        return x
    return F.interpolate(x, size=tuple(size), mode='bilinear', align_corners=True)


class Bottleneck(nn.Sequential):
    """1x1 and 3x3 convolution, each with normalisation and ReLU; the first has at most ``factor`` times the outputs."""

    def __init__(self, in_channels: int, out_channels: int, factor: int, norm_cfg: Mapping, stride: int = 1) -> None:
        inner = min(in_channels, factor * out_channels)
        super().__init__(
            ConvNormAct(in_channels, inner, 1, norm_cfg=norm_cfg, act='relu'),
            ConvNormAct(inner, out_channels, 3, stride, norm_cfg=norm_cfg, act='relu'),
        )


class DenseBlock(nn.Module):
    """Layers that each see all maps before them (Huang et al., CVPR 2017): (B, C, H, W) -> map, maps before each layer.

    Args:
        in_channels: C.
        layers: Their number.
        growth: Channels that each adds.
        factor: Of the bottlenecks.
        reduction: Share of the channels that a closing 1x1 convolution keeps; None for no such layer.
        norm_cfg: Normalisation.

    Attributes:
        out_channels: Of the returned map.
        kept_channels: Of the maps before each layer and behind the last.
    """

    def __init__(
        self, in_channels: int, layers: int, growth: int, factor: int, reduction: float | None, norm_cfg: Mapping
    ) -> None:
        super().__init__()
        self.kept_channels = [in_channels + growth * i for i in range(layers + 1)]
        self.layers = nn.ModuleList(Bottleneck(c, growth, factor, norm_cfg) for c in self.kept_channels[:-1])
        self._close(self.kept_channels[-1], reduction, norm_cfg)

    def _close(self, channels: int, reduction: float | None, norm_cfg: Mapping) -> None:
        self.out_channels = channels if reduction is None else int(channels * reduction)
        self.transition: nn.Module = nn.Identity()
        if reduction is not None:
            self.transition = ConvNormAct(channels, self.out_channels, 1, norm_cfg=norm_cfg, act='relu')

    def forward(self, x: Tensor) -> tuple[Tensor, list[Tensor]]:
        maps = [x]
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
            maps.append(x)
        return self.transition(x), maps


class FusionBlock(DenseBlock):
    """A dense block of which a part of each layer comes from the block of the sub-network below, enlarged to its size.

    Args:
        in_channels: C.
        low_channels: Of the maps that the block below kept.
        growth: Channels that each layer adds, ``int(share * growth)`` of them from below.
        factors: Of the bottlenecks, here and below.
        share: From below.
        down: The last layer halves the resolution.
        reduction: As in :class:`DenseBlock`.
        norm_cfg: Normalisation.
    """

    def __init__(
        self,
        in_channels: int,
        low_channels: Sequence[int],
        growth: int,
        factors: tuple[int, int],
        share: float,
        down: bool,
        reduction: float | None,
        norm_cfg: Mapping,
    ) -> None:
        nn.Module.__init__(self)
        count = len(low_channels) - 1
        self.kept_channels = [in_channels + growth * i for i in range(count + 1)]
        low = int(growth * share)
        self.low = nn.ModuleList(Bottleneck(c, low, factors[1], norm_cfg) for c in low_channels[:-1])
        strides = [2 if down and i == count - 1 else 1 for i in range(count)]
        self.layers = nn.ModuleList(
            Bottleneck(c, growth - low, factors[0], norm_cfg, stride)
            for c, stride in zip(self.kept_channels, strides, strict=False)
        )
        last = self.kept_channels[-1]
        self.low_last = ConvNormAct(low_channels[-1], int(last * share), 1, norm_cfg=norm_cfg, act='relu')
        self._close(last + int(last * share), reduction, norm_cfg)

    def forward(self, x: Tensor, below: Sequence[Tensor] = ()) -> tuple[Tensor, list[Tensor]]:
        maps = [x]
        for low, layer, lower in zip(self.low, self.layers, below, strict=False):
            new = layer(x)
            size = new.shape[2:]
            x = torch.cat([_resize(x, size), _resize(low(lower), size), new], 1)
            maps.append(x)
        x = torch.cat([x, _resize(self.low_last(below[-1]), x.shape[2:])], 1)
        return self.transition(x), maps


class ExitClassifier(nn.Sequential):
    """Two 3x3 convolutions of stride 2, global average pooling and a linear layer: (B, C, H, W) -> (B, num_classes)."""

    def __init__(self, in_channels: int, channels: int, num_classes: int, norm_cfg: Mapping) -> None:
        super().__init__(
            ConvNormAct(in_channels, channels, 3, 2, norm_cfg=norm_cfg, act='relu'),
            ConvNormAct(channels, channels, 3, 2, norm_cfg=norm_cfg, act='relu'),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(channels, num_classes),
        )


@MODELS.register_module()
class RANet(EarlyExit, BaseModule):
    """Resolution adaptive network: (B, 3, H, W) -> logits (B, num_classes), each sample's from the exit at which it left.

    Sub-network s works at scale ``scales[s]``, 1 being the lowest resolution, and its first blocks fuse the maps of the
    sub-network below. Each of its last ``block_step`` blocks (``blocks`` in the first) ends in a classifier. A sample of
    which one is sure leaves, and the high resolutions are computed for the others alone.
    :class:`EarlyExitClassifier` makes an mmengine model of it.

    The defaults are the paper's for CIFAR; for ImageNet it has ``step=8, step_mode='even', growth_rate=16, channels=32,
    scales=(1, 2, 3, 4), growth_factors=(4, 2, 2, 1), bottleneck_factors=(4, 2, 2, 1), large_stem=True``.

    Args:
        num_classes: Number of classes.
        scales: Scale of each sub-network, from 1 up in steps of 0 or 1.
        channels: Base of the first layers' channels.
        growth_rate: Base of the channels that a layer adds.
        growth_factors: Multiplies both, one factor a sub-network.
        bottleneck_factors: Width of the 1x1 convolutions, one a sub-network.
        blocks: Blocks of the first sub-network.
        block_step: Blocks that each sub-network has more than the one below.
        step: Layers of the first block, and with ``step_mode='lg'`` what each further one has more.
        step_mode: ``'even'``: all blocks have ``step`` layers; ``'lg'``: linear growth.
        reduction: Share of channels that transitions keep.
        low_share: Share of a fusing layer's channels that comes from below.
        classifier_channels: Of the classifiers' convolutions; None: as the map they read.
        large_stem: 7x7 convolution and pooling to stride 4 in place of a 3x3 convolution.
        norm_cfg: Normalisation.

    Raises:
        ValueError: Scales, factors or ``step_mode`` that do not fit, a count below 1, or a share out of range.
    """

    def __init__(
        self,
        num_classes: int = 10,
        scales: Sequence[int] = (1, 2, 3),
        channels: int = 16,
        growth_rate: int = 6,
        growth_factors: Sequence[int] = (4, 2, 1),
        bottleneck_factors: Sequence[int] = (4, 2, 1),
        blocks: int = 2,
        block_step: int = 2,
        step: int = 2,
        step_mode: str = 'lg',
        reduction: float = 0.5,
        low_share: float = 0.25,
        classifier_channels: int | None = 128,
        large_stem: bool = False,
        norm_cfg: Mapping | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        _check(scales, growth_factors, bottleneck_factors, step_mode)
        for name, count in dict(blocks=blocks, block_step=block_step, step=step).items():
            if count < 1:
                raise ValueError(f'{name}={count} must be at least 1')
        if not (0 < reduction <= 1 and 0 < low_share < 1):
            raise ValueError(f'reduction={reduction} must lie in (0, 1], low_share={low_share} in (0, 1)')
        ends = [blocks + block_step * s for s in range(len(scales))]  # blocks of each sub-network
        super().__init__(ends[-1], init_cfg=init_cfg)
        norm_cfg = norm_cfg or BN
        widths = [channels * factor for factor in growth_factors]
        self.stem = _stem(widths[::-1], scales[::-1], large_stem, norm_cfg)
        self.fused = [0, *ends[:-1]]  # blocks of each that fuse
        layers = [step * (i + 1 if step_mode == 'lg' else 1) for i in range(ends[-1])]
        self.subnets = nn.ModuleList()
        self.classifiers = nn.ModuleList()
        below: Any = ()
        for s, scale in enumerate(scales):
            halving = self.fused[1 : s + 1][s - scale + 1 :]
            closing = [(i + 1) * ends[s] // scale for i in range(scale - 1)]
            growth, factor, width = growth_rate * growth_factors[s], bottleneck_factors[s], widths[s]
            subnet = nn.ModuleList()
            for i in range(ends[s]):
                keep = reduction if i + 1 in closing else None
                block: DenseBlock
                if i < self.fused[s]:
                    factors, down = (factor, bottleneck_factors[s - 1]), i + 1 in halving
                    block = FusionBlock(width, below[i].kept_channels, growth, factors, low_share, down, keep, norm_cfg)
                else:
                    block = DenseBlock(width, layers[i], growth, factor, keep, norm_cfg)
                    inner = classifier_channels or block.out_channels
                    self.classifiers.append(ExitClassifier(block.out_channels, inner, num_classes, norm_cfg))
                width = block.out_channels
                subnet.append(block)
            self.subnets.append(subnet)
            below = subnet

    def init_weights(self) -> None:
        init_conv_norm(self)
        if self.init_cfg:
            super().init_weights()
        self._is_init = True  # mmengine would list every parameter on the terminal

    def walk(self, x: Tensor, alive: Survivors) -> Iterator[ExitPoint]:
        """From exit to exit; the first layers of all resolutions come first, as the lowest is made from the highest."""
        bases = []
        for layer in self.stem:
            x = layer(x)
            bases.append(alive.hold(x))
        below: list[list[Held]] = []
        classifiers = iter(self.classifiers)
        for s, subnet in enumerate(self.subnets):
            x = alive.take(bases.pop())
            kept: list[list[Held]] = []
            for i, block in enumerate(cast(nn.ModuleList, subnet)):
                fuses = i < self.fused[s]
                x, maps = block(x, [alive.take(held) for held in below[i]]) if fuses else block(x)
                if s + 1 < len(self.subnets):
                    kept.append([alive.hold(part) for part in maps])
                if not fuses:
                    held = alive.hold(x)
                    yield ExitPoint(next(classifiers), x)
                    x = alive.take(held)
            below = kept


def _stem(widths: Sequence[int], scales: Sequence[int], large: bool, norm_cfg: Mapping) -> nn.ModuleList:
    """The first layers, from the highest resolution down: one map a sub-network."""
    first: nn.Module = ConvNormAct(3, widths[0], 3, norm_cfg=norm_cfg, act='relu')
    if large:
        conv = ConvNormAct(3, widths[0], 7, 2, norm_cfg=norm_cfg, act='relu')
        first = nn.Sequential(conv, nn.MaxPool2d(3, 2, 1))
    layers = [first]
    for i in range(1, len(widths)):
        stride = 1 if scales[i] == scales[i - 1] else 2
        layers.append(ConvNormAct(widths[i - 1], widths[i], 3, stride, norm_cfg=norm_cfg, act='relu'))
    return nn.ModuleList(layers)


def _check(scales: Sequence[int], growth: Sequence[int], bottleneck: Sequence[int], step_mode: str) -> None:
    if step_mode not in ('even', 'lg'):
        raise ValueError(f"step_mode={step_mode!r} must be 'even' or 'lg'")
    if tuple(scales[:1]) != (1,) or any(b - a not in (0, 1) for a, b in pairwise(scales)):
        raise ValueError(f'scales={tuple(scales)} must start at 1 and rise by 0 or 1')
    if not len(scales) == len(growth) == len(bottleneck) or len(scales) < 2:
        raise ValueError(
            f'scales={tuple(scales)}, growth_factors={tuple(growth)} and bottleneck_factors={tuple(bottleneck)} must have '
            'one number a sub-network, and at least two'
        )


class ExitHead(ClsHead):
    """The loss of a network that brings its own classifiers; passes logits (B, num_classes) on."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


@MODELS.register_module()
class EarlyExitClassifier(ImageClassifier):
    """A network with several exits as a classifier; in training all its classifiers' losses are summed.

    Args:
        backbone: Config of a network with exits such as :class:`RANet`.
        num_classes: Number of classes, filled in for the network.
        label_smoothing: Of the cross-entropy losses.
        data_preprocessor: See :class:`~eff_plugins.models.classifiers.ImageClassifier`.
        eval_size: As there, and so is ``eval_interpolation``.

    Raises:
        TypeError: ``backbone`` has no exits.
    """

    def __init__(
        self,
        backbone: dict,
        num_classes: int,
        label_smoothing: float = 0.0,
        data_preprocessor: dict | None = None,
        eval_size: Sequence[int] | None = None,
        eval_interpolation: str = 'bicubic',
        init_cfg: dict | None = None,
    ) -> None:
        kind = MODELS.get(backbone['type'])
        if not (isinstance(kind, type) and issubclass(kind, EarlyExit)):
            raise TypeError(f'backbone {backbone["type"]} has no exits; RANet has')
        head = ExitHead(num_classes, label_smoothing)
        super().__init__(
            {**backbone, 'num_classes': num_classes}, head, data_preprocessor, eval_size, eval_interpolation, init_cfg
        )

    def losses(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """One a classifier, ``loss_exit0``, ``loss_exit1`` ..."""
        exits = self.backbone.anytime(inputs)
        return {f'loss_exit{k}': self.head.loss(self.head(logits), labels) for k, logits in enumerate(exits)}
