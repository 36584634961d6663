"""ResNet with the arguments and the keys of mmdet's and mmseg's, made of blocks that dynamic networks can host in.

He et al., "Deep Residual Learning for Image Recognition", CVPR 2016. ``deep_stem`` and ``avg_down``: He et al., "Bag of
Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019. ``multi_grid``: Chen et al., "Rethinking
Atrous Convolution", 2017. Written from the papers; the checkpoints of torchvision, mmdet and mmseg fit.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from eff_plugins.compat import require
from eff_plugins.dynamic.residual import ResidualBlock, Unit, parse_units, run_block
from eff_plugins.models.image.base import StagedBackbone
from eff_plugins.models.layers.conv import build_norm
from eff_plugins.registry import MODELS

_NORM_NAMES = {'BN': 'bn', 'BN2d': 'bn', 'SyncBN': 'bn', 'GN': 'gn', 'IN': 'in', 'LN': 'ln'}
_POSITIONS = ('after_conv1', 'after_conv2', 'after_conv3')


def _norm_name(norm_cfg: Mapping, number: int) -> str:
    return f'{_NORM_NAMES.get(norm_cfg["type"], "norm_layer")}{number}'


def _conv(cfg: Mapping | None, in_channels: int, channels: int, kernel: int, **kwargs: Any) -> nn.Module:
    """A convolution without bias; anything but torch's own comes from mmcv's registry."""
    if cfg is None or cfg.get('type') in ('Conv2d', 'Conv'):
        return nn.Conv2d(in_channels, channels, kernel, bias=False, **kwargs)
    return require('mmcv.cnn', 'det').build_conv_layer(cfg, in_channels, channels, kernel, bias=False, **kwargs)


@dataclass(frozen=True)
class Layout:
    """What a residual block is made of, besides its channels; see :class:`ResNet` for the values."""

    norm_cfg: Mapping
    stride: int = 1
    dilation: int = 1
    style: str = 'pytorch'
    conv_cfg: Mapping | None = None
    dcn: Mapping | None = None
    plugins: Sequence[Mapping] = ()


class _Block(ResidualBlock):
    """What both residual blocks share; see ResNet for the arguments.

    Args:
        in_channels: C of the input.
        channels: Of the 3x3 convolution; the block returns ``expansion`` times as many.
        downsample: Adapts the shortcut's shape, or None.
    """

    expansion = 1
    nonnegative = True  # a ReLU, or a max-pooling of one, comes before

    def __init__(self, downsample: nn.Module | None, norm_cfg: Mapping) -> None:
        super().__init__()
        self.norm_cfg = dict(norm_cfg)
        self.relu = nn.ReLU(inplace=True)
        if downsample is not None:
            self.downsample = downsample
        self.has_residual = downsample is None
        self._count = 0
        self._plugins: dict[str, list[str]] = {}

    @property
    def act(self) -> nn.Module:  # type: ignore[override]
        return self.relu

    def add(self, conv: nn.Module, channels: int) -> None:
        """Append a convolution and its normalisation under mmdet's names."""
        self._count += 1
        self.add_module(f'conv{self._count}', conv)
        self.add_module(_norm_name(self.norm_cfg, self._count), build_norm(self.norm_cfg, channels))

    def norm(self, number: int) -> nn.Module:
        """The normalisation after convolution ``number``."""
        return self._modules[_norm_name(self.norm_cfg, number)]  # type: ignore[return-value]

    def units(self) -> list[Unit]:
        if self._plugins:
            raise TypeError('a block with plugins cannot be computed in part: leave plugins out of the dynamic stages')
        return self._units()

    def _units(self) -> list[Unit]:
        numbers = range(1, self._count + 1)
        return [
            Unit(self._modules[f'conv{i}'], self.norm(i), self.relu if i < self._count else None)  # type: ignore[arg-type]
            for i in numbers
        ]

    def shortcut_units(self) -> list[Unit]:
        steps = list(self.downsample.children()) if 'downsample' in self._modules else []
        return parse_units(steps) if steps and isinstance(steps[0], nn.Conv2d) else []  # no pooling before it

    def run_shortcut(self, x: Tensor) -> Tensor:
        return self.downsample(x) if 'downsample' in self._modules else x

    def run_branch(self, x: Tensor) -> Tensor:
        for i, unit in enumerate(self._units(), 1):
            x = unit.run(x)
            for name in self._plugins.get(f'after_conv{i}', ()):
                x = self._modules[name](x)  # type: ignore[misc]
        return x


class BasicBlock(_Block):
    """Two 3x3 convolutions."""

    def __init__(self, in_channels: int, channels: int, downsample: nn.Module | None, layout: Layout) -> None:
        super().__init__(downsample, layout.norm_cfg)
        if layout.dcn is not None or layout.plugins:
            raise ValueError('dcn and plugins need the bottleneck blocks of depth 50 and more')
        spacing = dict(stride=layout.stride, padding=layout.dilation, dilation=layout.dilation)
        self.add(_conv(layout.conv_cfg, in_channels, channels, 3, **spacing), channels)
        self.add(_conv(layout.conv_cfg, channels, channels, 3, padding=1), channels)


class Bottleneck(_Block):
    """1x1, 3x3, 1x1 convolutions; the stride is in the 3x3 (``style='pytorch'``) or in the first 1x1 (``'caffe'``)."""

    expansion = 4

    def __init__(self, in_channels: int, channels: int, downsample: nn.Module | None, layout: Layout) -> None:
        super().__init__(downsample, layout.norm_cfg)
        conv_cfg, dilation = layout.conv_cfg, layout.dilation
        first, second = (1, layout.stride) if layout.style == 'pytorch' else (layout.stride, 1)
        out_channels = channels * self.expansion
        offsets = dict(layout.dcn or {})
        # mmdet: an offset predictor that falls back to the plain convolution is for models that share it
        middle = conv_cfg if layout.dcn is None or offsets.pop('fallback_on_stride', False) else offsets
        self.add(_conv(conv_cfg, in_channels, channels, 1, stride=first), channels)
        self.add(_conv(middle, channels, channels, 3, stride=second, padding=dilation, dilation=dilation), channels)
        self.add(_conv(conv_cfg, channels, out_channels, 1), out_channels)
        for plugin in layout.plugins:
            self._add_plugin(plugin, channels, out_channels)

    def _add_plugin(self, plugin: Mapping, channels: int, out_channels: int) -> None:
        position = plugin.get('position')
        if position not in _POSITIONS:
            raise ValueError(f'position={position!r} of a plugin must be one of {", ".join(_POSITIONS)}')
        cfg = dict(plugin['cfg'])
        width = out_channels if position == 'after_conv3' else channels
        name, layer = require('mmcv.cnn', 'det').build_plugin_layer(
            cfg, in_channels=width, postfix=cfg.pop('postfix', '')
        )
        self.add_module(name, layer)
        self._plugins.setdefault(position, []).append(name)


_DEPTHS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


@MODELS.register_module()
class ResNet(StagedBackbone):
    """ResNet: (B, C, H, W) -> one map for each of ``out_indices``.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: C.
        stem_channels: Of the stem; ``base_channels`` where it is None.
        base_channels: Of the first stage's 3x3 convolutions; doubled from stage to stage.
        num_stages: 1-4.
        strides: Of the first block of each stage.
        dilations: Of each stage's 3x3 convolutions.
        out_indices: 0-3 = C2-C5, ascending. Stages after the last one are not built.
        style: ``'pytorch'`` or ``'caffe'``: which convolution of a bottleneck has the stride.
        deep_stem: Three 3x3 convolutions instead of one 7x7.
        avg_down: Average pooling before the shortcut's convolution instead of its stride.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        conv_cfg: Convolution type of mmcv's registry; None is torch's.
        norm_cfg: Normalisation.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        dcn: Convolution that replaces the 3x3 of the bottlenecks in the stages that ``stage_with_dcn`` marks.
        stage_with_dcn: One flag a stage.
        plugins: mmdet's plugins: ``dict(cfg=..., position='after_conv2', stages=(...))``.
        multi_grid: Dilations of the last stage's blocks (mmseg).
        contract_dilation: Halve the first dilation of each stage (mmseg).
        with_cp: Recompute each block in the backward pass instead of storing its activations.
        zero_init_residual: Start with blocks that pass their input on.
        pretrained: Checkpoint; the older way of writing ``init_cfg``.
        init_cfg: ``dict(type='Pretrained', checkpoint='torchvision://resnet50')``; strictly, a classifier apart.

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Their strides.
        size_divisor: The largest of these.

    Raises:
        ValueError: An argument out of range; the message names it.
        MissingExtraError: ``conv_cfg``, ``dcn`` or ``plugins`` without mmcv.
    """

    first_stride = 4

    def __init__(
        self,
        depth: int = 50,
        in_channels: int = 3,
        stem_channels: int | None = None,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = 'pytorch',
        deep_stem: bool = False,
        avg_down: bool = False,
        frozen_stages: int = -1,
        conv_cfg: Mapping | None = None,
        norm_cfg: Mapping | None = None,
        norm_eval: bool = False,
        dcn: Mapping | None = None,
        stage_with_dcn: Sequence[bool] = (False, False, False, False),
        plugins: Sequence[Mapping] | None = None,
        multi_grid: Sequence[int] | None = None,
        contract_dilation: bool = False,
        with_cp: bool = False,
        zero_init_residual: bool = True,
        pretrained: str | None = None,
        init_cfg: dict | list | None = None,
    ) -> None:
        if pretrained is not None:
            if init_cfg is not None:
                raise ValueError('pretrained and init_cfg both name weights: leave pretrained out')
            init_cfg = dict(type='Pretrained', checkpoint=pretrained)
        super().__init__(init_cfg)
        _check(depth, num_stages, strides, dilations, out_indices, style, frozen_stages)
        block, depths = _DEPTHS[depth]
        self.depth = depth
        self.norm_cfg = dict(norm_cfg or dict(type='BN', requires_grad=True))
        self.norm_eval, self.with_cp, self.zero_init_residual = norm_eval, with_cp, zero_init_residual
        self.frozen_stages, self.out_indices = frozen_stages, tuple(out_indices)
        self.deep_stem = deep_stem
        channels = stem_channels or base_channels
        self._make_stem(in_channels, channels, conv_cfg)
        stride, widths, reached = 4, [], []
        for i in range(max(out_indices) + 1):
            width = base_channels * 2**i
            layout = Layout(
                self.norm_cfg,
                strides[i],
                style=style,
                conv_cfg=conv_cfg,
                dcn=dcn if stage_with_dcn[i] else None,
                plugins=[p for p in plugins or () if p.get('stages') is None or p['stages'][i]],
            )
            grid = multi_grid if i == num_stages - 1 else None
            each = _dilations(depths[i], dilations[i], grid, contract_dilation)
            stage = _stage(block, channels, width, each, avg_down, layout)
            self.add_module(f'layer{i + 1}', stage)
            channels = width * block.expansion
            stride *= strides[i]
            widths.append(channels)
            reached.append(stride)
        self.out_channels = tuple(widths[i] for i in self.out_indices)
        self.out_strides = tuple(reached[i] for i in self.out_indices)
        self.size_divisor = max(self.out_strides)
        self.settle()

    def _make_stem(self, in_channels: int, channels: int, conv_cfg: Mapping | None) -> None:
        norm, half = self.norm_cfg, channels // 2
        if self.deep_stem:
            steps: list[nn.Module] = []
            for c_in, c_out, stride in ((in_channels, half, 2), (half, half, 1), (half, channels, 1)):
                steps += [_conv(conv_cfg, c_in, c_out, 3, stride=stride, padding=1), build_norm(norm, c_out)]
                steps.append(nn.ReLU(inplace=True))
            self.stem = nn.Sequential(*steps)
        else:
            self.conv1 = _conv(conv_cfg, in_channels, channels, 7, stride=2, padding=3)
            self._stem_norm = _norm_name(norm, 1)
            self.add_module(self._stem_norm, build_norm(norm, channels))
            self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)

    @property
    def stages(self) -> list[nn.Sequential]:
        """The stages that are built, in order."""
        return [getattr(self, f'layer{i + 1}') for i in range(max(self.out_indices) + 1)]

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        if self.deep_stem:
            x = self.stem(x)
        else:
            x = self.relu(self._modules[self._stem_norm](self.conv1(x)))  # type: ignore[misc]
        x = self.maxpool(x)
        outs = []
        for i, stage in enumerate(self.stages):
            for block in stage:
                x = run_block(block, x, self.with_cp)
            if i in self.out_indices:
                outs.append(x)
        return tuple(outs)

    def initialise(self) -> None:
        super().initialise()
        if self.zero_init_residual:
            for block in self.modules():
                if isinstance(block, _Block):
                    nn.init.zeros_(block.norm(block._count).weight)  # type: ignore[arg-type]

    def own_key(self, key: str) -> str | None:
        """A checkpoint's key, or None for what this backbone leaves out: the classifier, and stages that are not built."""
        left_out = key.startswith('fc.') or (key.startswith('layer') and int(key[5]) > max(self.out_indices) + 1)
        return None if left_out else key

    def stem_parts(self) -> list[nn.Module]:
        names = ['stem'] if self.deep_stem else ['conv1', self._stem_norm]
        return [self._modules[name] for name in names]  # type: ignore[misc]


def _check(
    depth: int,
    num_stages: int,
    strides: Sequence[int],
    dilations: Sequence[int],
    out_indices: Sequence[int],
    style: str,
    frozen_stages: int,
) -> None:
    if depth not in _DEPTHS:
        raise ValueError(f'depth={depth} of a ResNet must be one of {", ".join(map(str, _DEPTHS))}')
    if not 1 <= num_stages <= 4:
        raise ValueError(f'num_stages={num_stages} must lie in 1..4')
    for name, values in (('strides', strides), ('dilations', dilations)):
        if len(values) != num_stages:
            raise ValueError(f'{name}={tuple(values)} must have one number for each of num_stages={num_stages}')
    wanted = sorted({*out_indices} & {*range(num_stages)})
    if not out_indices or list(out_indices) != wanted:
        raise ValueError(f'out_indices={tuple(out_indices)} must ascend and lie in 0..{num_stages - 1}')
    if style not in ('pytorch', 'caffe'):
        raise ValueError(f"style={style!r} must be 'pytorch' or 'caffe'")
    if not -1 <= frozen_stages <= num_stages:
        raise ValueError(f'frozen_stages={frozen_stages} is outside -1..{num_stages} (0 = stem only)')


def _dilations(count: int, dilation: int, multi_grid: Sequence[int] | None, contract: bool) -> list[int]:
    """Dilation of each block of a stage."""
    if multi_grid is not None:
        if len(multi_grid) < count:
            raise ValueError(f'multi_grid={tuple(multi_grid)} must have a dilation for each of {count} blocks')
        grid = list(multi_grid[:count])
    else:
        grid = [dilation] * count
    if contract and dilation > 1 and multi_grid is None:
        grid[0] = dilation // 2
    return grid


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    width: int,
    dilations: Sequence[int],
    avg_down: bool,
    layout: Layout,
) -> nn.Sequential:
    """A block for each of ``dilations``; the first one has the layout's stride."""
    channels, blocks = in_channels, []
    for j, dilation in enumerate(dilations):
        own = replace(layout, stride=layout.stride if j == 0 else 1, dilation=dilation)
        out_channels = width * block.expansion
        downsample = None
        if own.stride != 1 or channels != out_channels:
            downsample = _downsample(channels, out_channels, avg_down, own)
        blocks.append(block(channels, width, downsample, own))
        blocks[-1].owns_input = j > 0  # the first block's input may be a map that others read
        channels = out_channels
    return nn.Sequential(*blocks)


def _downsample(in_channels: int, out_channels: int, avg_down: bool, layout: Layout) -> nn.Sequential:
    steps: list[nn.Module] = []
    stride = layout.stride
    if avg_down:
        steps.append(nn.AvgPool2d(stride, stride, ceil_mode=True, count_include_pad=False))
        stride = 1
    steps.append(_conv(layout.conv_cfg, in_channels, out_channels, 1, stride=stride))
    steps.append(build_norm(layout.norm_cfg, out_channels))
    return nn.Sequential(*steps)
