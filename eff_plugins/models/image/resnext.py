"""ResNet and ResNeXt as one class over a table.

ResNet: He et al., CVPR 2016, with the stride in the 3x3 convolution (torchvision's ResNet V1.5). ResNeXt: Xie et al.,
"Aggregated Residual Transformations for Deep Neural Networks", CVPR 2017. Written from the papers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from eff_plugins.dynamic.residual import ResidualBlock, Unit, parse_units
from eff_plugins.models.image.base import ImageBackbone
from eff_plugins.models.image.stages import check_keys, resolve_description
from eff_plugins.models.image.zoo import Variant
from eff_plugins.models.layers.conv import ConvNormAct, SqueezeExcite, build_act
from eff_plugins.registry import MODELS


@dataclass(frozen=True)
class ResNeXtSpec:
    """A bottleneck ResNet.

    Attributes:
        depths: Blocks of the four stages.
        cardinality: Groups of every 3x3 convolution (C); 1 is a ResNet.
        width: Channels of a group in the first stage (d); doubled from stage to stage.
    """

    depths: tuple[int, int, int, int]
    cardinality: int = 1
    width: int = 64

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ResNeXtSpec:
        """Build from plain data, as written in a config.

        Raises:
            ValueError: A key is unknown or ``depths`` does not list four stages.
        """
        check_keys(data, cls, 'ResNeXt')
        if len(data.get('depths', ())) != 4:
            raise ValueError(f'depths={data.get("depths")} of a ResNeXt must list the blocks of its four stages')
        return cls(**{**data, 'depths': tuple(data['depths'])})


_SHALLOW, _DEEP = (3, 4, 6, 3), (3, 4, 23, 3)
# He et al., Table 1; Xie et al., Table 1 and section 5.1
ARCHS: dict[str, ResNeXtSpec] = {
    'resnet50': ResNeXtSpec(_SHALLOW),
    'resnet101': ResNeXtSpec(_DEEP),
    'resnext50_32x4d': ResNeXtSpec(_SHALLOW, 32, 4),
    'resnext101_32x4d': ResNeXtSpec(_DEEP, 32, 4),
    'resnext101_32x8d': ResNeXtSpec(_DEEP, 32, 8),
    'resnext101_64x4d': ResNeXtSpec(_DEEP, 64, 4),
}


class Bottleneck(ResidualBlock):
    """1x1, grouped 3x3, [squeeze-excite,] 1x1 beside a shortcut: (B, C, H, W) -> (B, C', H / stride, W / stride).

    Args:
        in_channels: C.
        out_channels: C'.
        hidden: Channels of the 3x3 convolution.
        groups: Its groups.
        stride: Its stride.
        norm_cfg: See :func:`eff_plugins.models.layers.conv.build_norm`.
        act: A key of ``ACTIVATIONS``.
        squeezed: Channels inside squeeze-excite; 0 leaves it out.
        inverted: The output is linear, and there is no shortcut where it would need a projection (RegNetZ). Otherwise the
            activation follows the sum, and a 1x1 convolution adapts the shortcut's shape.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        hidden: int,
        groups: int,
        stride: int,
        norm_cfg: Mapping,
        act: str = 'relu',
        squeezed: int = 0,
        inverted: bool = False,
    ) -> None:
        super().__init__()
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        layers['enter'] = ConvNormAct(in_channels, hidden, norm_cfg=norm_cfg, act=act)
        layers['filter'] = ConvNormAct(hidden, hidden, 3, stride, groups, norm_cfg=norm_cfg, act=act)
        if squeezed:
            layers['se'] = SqueezeExcite(hidden, squeezed, act, inplace=True)
        layers['leave'] = ConvNormAct(hidden, out_channels, norm_cfg=norm_cfg, act=None)
        self.branch: nn.Module = nn.Sequential(layers)
        self.has_residual = in_channels == out_channels and stride == 1
        self.has_shortcut = self.has_residual or not inverted
        if not self.has_residual and not inverted:
            self.shortcut = ConvNormAct(in_channels, out_channels, 1, stride, norm_cfg=norm_cfg, act=None)
        self.act = None if inverted else build_act(act)

    def units(self) -> list[Unit]:
        return parse_units([self.branch])

    def shortcut_units(self) -> list[Unit]:
        return parse_units([self.shortcut]) if hasattr(self, 'shortcut') else []

    def run_shortcut(self, x: Tensor) -> Tensor:
        return x if self.has_residual else self.shortcut(x)

    def run_branch(self, x: Tensor) -> Tensor:
        return self.branch(x)


@MODELS.register_module()
class ResNeXt(ImageBackbone):
    """Bottleneck ResNet or ResNeXt: (B, C, H, W) -> one map for each of ``out_indices``.

    Args:
        arch: A name (``'resnext50_32x4d'``, ``'resnet50'``) or ``dict(depths=, cardinality=, width=)``.
        out_indices: 0-3 = C2-C5 (strides 4 to 32), ascending.
        in_channels: Channels of the input.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_cfg: Normalisation.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute each block in the backward pass instead of storing its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights strictly.

    Raises:
        ValueError: Unknown ``arch``, a map the network does not have, or ``frozen_stages`` out of range.
    """

    first_stride = 4

    def __init__(
        self,
        arch: str | Mapping[str, Any] | ResNeXtSpec = 'resnext50_32x4d',
        out_indices: Sequence[int] = (0, 1, 2, 3),
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_cfg: Mapping | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, norm_eval, with_cp, init_cfg)
        self.spec = spec = resolve_description(arch, ARCHS, ResNeXtSpec, 'resnext')
        norm = {'type': 'BN', **(norm_cfg or {})}
        stem = ConvNormAct(in_channels, 64, 7, 2, norm_cfg=norm, act='relu')
        stem.add_module('pool', nn.MaxPool2d(3, 2, 1))
        self.set_stem(stem, 64, 4)
        channels, out_channels, stride = 64, 256, 4
        for i, depth in enumerate(spec.depths):
            hidden = spec.cardinality * spec.width * 2**i
            blocks = []
            for j in range(depth):
                block_stride = 2 if i and j == 0 else 1
                blocks.append(Bottleneck(channels, out_channels, hidden, spec.cardinality, block_stride, norm))
                channels, stride = out_channels, stride * block_stride
            self.add_stage(blocks, channels, stride)
            out_channels *= 2
        self.finish(out_indices, frozen_stages)


_TV = 'torchvision 0.28 model documentation'

# name -> (parameters in M, multiply-adds in G, source, oracle)
_PUBLISHED: dict[str, tuple[float, float, str, str]] = {
    'resnet50': (25.557032, 4.089, _TV, 'tv:resnet50'),
    'resnet101': (44.549160, 7.801, _TV, 'tv:resnet101'),
    'resnext50_32x4d': (25.028904, 4.23, _TV, 'tv:resnext50_32x4d'),
    'resnext101_32x4d': (44.2, 8.0, 'pycls model zoo', 'timm:resnext101_32x4d'),
    'resnext101_32x8d': (88.791336, 16.414, _TV, 'tv:resnext101_32x8d'),
    'resnext101_64x4d': (83.455272, 15.46, _TV, 'tv:resnext101_64x4d'),
}

VARIANTS: dict[str, Variant] = {
    name: Variant(
        family='resnext',
        backbone=dict(type='eff_plugins.ResNeXt', arch=name),
        params=params,
        macs=macs,
        source=source,
        last_index=3,
        oracle=oracle,
    )
    for name, (params, macs, source, oracle) in _PUBLISHED.items()
}
