"""ShuffleNet, versions 1 and 2.

Sources: Zhang et al., "ShuffleNet", CVPR 2018, table 1; Ma et al., "ShuffleNet V2", ECCV 2018, table 5. The stems of the
scaled versions of the first are those of the authors' repository.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from eff_plugins.models.image.base import ImageBackbone
from eff_plugins.models.image.zoo import Variant
from eff_plugins.models.layers.conv import ConvNormAct
from eff_plugins.models.layers.split_transform_merge import SplitTransformMerge
from eff_plugins.registry import MODELS

REPEATS = (4, 8, 4)
# Groups of version 1 -> channels of its first stage, doubled in each further one
V1_CHANNELS = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
# Width of version 2 -> channels of its three stages
V2_CHANNELS = {0.5: (48, 96, 192), 1.0: (116, 232, 464), 1.5: (176, 352, 704), 2.0: (244, 488, 976)}


class _ShuffleNet(ImageBackbone):
    """A stem with pooling, and three stages of units whose first has stride 2."""

    def build(self, stem_channels: int, channels: Sequence[int], norm_cfg: Mapping | None, unit: Mapping) -> None:
        """Add stem and stages; ``unit`` is the form of the units and its options."""
        norm_cfg = norm_cfg or dict(type='BN')
        stem = ConvNormAct(self.in_channels, stem_channels, 3, 2, norm_cfg=norm_cfg, act='relu')
        self.set_stem(stem, stem_channels, stride=2)
        self.add_stage([nn.MaxPool2d(3, 2, 1)], stem_channels, stride=4)
        width = stem_channels
        for i, (out, repeats) in enumerate(zip(channels, REPEATS, strict=True)):
            blocks = []
            for j in range(repeats):
                options = self.first_unit(unit) if i == j == 0 else unit
                stride = 2 if j == 0 else 1
                blocks.append(SplitTransformMerge(width, out, 3, stride, norm_cfg=norm_cfg, **options))
                width = out
            self.add_stage(blocks, out, stride=8 * 2**i)

    def first_unit(self, unit: Mapping) -> Mapping[str, Any]:
        """Form and options of the first unit of all."""
        return unit


@MODELS.register_module()
class ShuffleNetV1(_ShuffleNet):
    """ShuffleNet's backbone: (B, C, H, W) -> one map for each of ``out_indices``.

    Args:
        groups: Groups of the 1x1 convolutions: 1, 2, 3, 4 or 8, which also sets the stages' channels.
        width: Factor of the stages' channels.
        stem_channels: Channels of the first convolution.
        out_indices: Resolution levels to return, ascending: 0 = stride 2, 1 = stride 4 (both of the stem) ... 4 = stride 32.
        in_channels: Channels of the input.
        frozen_stages: -1 freezes nothing, 0 the stem, k also the first k of four stages, the first of which is the pooling.
        norm_cfg: Normalisation, BatchNorm by default.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute each block in the backward pass instead of storing its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights strictly.

    Raises:
        ValueError: Groups that were not published, channels that they do not divide, a level the network does not have, or
            ``frozen_stages`` out of range.
    """

    def __init__(
        self,
        groups: int = 3,
        width: float = 1.0,
        stem_channels: int = 24,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_cfg: Mapping | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, norm_eval, with_cp, init_cfg)
        if groups not in V1_CHANNELS:
            raise ValueError(f'groups={groups} of ShuffleNetV1 must be one of {", ".join(map(str, V1_CHANNELS))}')
        channels = [int(V1_CHANNELS[groups] * width) * 2**i for i in range(3)]
        self.build(stem_channels, channels, norm_cfg, dict(form='shufflenet_v1', groups=groups))
        self.finish(out_indices, frozen_stages)

    def first_unit(self, unit: Mapping) -> Mapping[str, Any]:
        # its input has too few channels for groups (section 3.3 of the paper)
        return {**unit, 'first_groups': 1}


@MODELS.register_module()
class ShuffleNetV2(_ShuffleNet):
    """ShuffleNet V2's backbone: (B, C, H, W) -> one map for each of ``out_indices``.

    Args:
        width: 0.5, 1.0, 1.5 or 2.0, or the channels of the three stages.
        stem_channels: Channels of the first convolution.
        out_indices: Resolution levels to return, ascending: 0 = stride 2, 1 = stride 4 (both of the stem) ... 4 = stride 32.
        in_channels: Channels of the input.
        frozen_stages: -1 freezes nothing, 0 the stem, k also the first k of four stages, the first of which is the pooling.
        norm_cfg: Normalisation, BatchNorm by default.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute each block in the backward pass instead of storing its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights strictly.

    Raises:
        ValueError: A width that was not published, a level the network does not have, or ``frozen_stages`` out of range.
    """

    def __init__(
        self,
        width: float | Sequence[int] = 1.0,
        stem_channels: int = 24,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_cfg: Mapping | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, norm_eval, with_cp, init_cfg)
        channels = V2_CHANNELS.get(width) if isinstance(width, (int, float)) else tuple(width)
        if channels is None or len(channels) != len(REPEATS):
            raise ValueError(
                f'width={width} of ShuffleNetV2 must be one of {", ".join(map(str, V2_CHANNELS))} or three numbers of '
                'channels'
            )
        self.build(stem_channels, channels, norm_cfg, dict(form='shufflenet_v2'))
        self.finish(out_indices, frozen_stages)


_TABLE = (
    'multiply-adds: Zhang et al., CVPR 2018, table 1, and the linear layer, which it leaves out; parameters: pytorchcv'
)
_PAPER = 'multiply-adds: Zhang et al., CVPR 2018, table 2; parameters: pytorchcv'
_AUTHORS = "the authors' repository (megvii-model/ShuffleNet-Series)"

# name -> (groups, width, stem channels, parameters in M, multiply-adds in G, source)
_V1: dict[str, tuple[int, float, int, float, float, str]] = {
    'shufflenetv1_g1_100': (1, 1.0, 24, 1.531936, 0.143 + 0.000576, _TABLE),
    'shufflenetv1_g2_100': (2, 1.0, 24, 1.733848, 0.140 + 0.000800, _TABLE),
    'shufflenetv1_g3_100': (3, 1.0, 24, 1.865728, 0.137 + 0.000960, _TABLE),
    'shufflenetv1_g4_100': (4, 1.0, 24, 1.968344, 0.133 + 0.001088, _TABLE),
    'shufflenetv1_g8_100': (8, 1.0, 24, 2.434768, 0.137 + 0.001536, _TABLE),
    'shufflenetv1_g3_050': (3, 0.5, 12, 0.718324, 0.038, _PAPER),
    'shufflenetv1_g3_150': (3, 1.5, 24, 3.4, 0.292, _AUTHORS),
    'shufflenetv1_g3_200': (3, 2.0, 48, 5.4, 0.524, _AUTHORS),
}
# name -> (width, channels of the head's convolution, parameters in M, multiply-adds in G, oracle)
_V2: dict[str, tuple[float, int, float, float, str]] = {
    'shufflenetv2_050': (0.5, 1024, 1.366792, 0.041, 'tv:shufflenet_v2_x0_5'),
    'shufflenetv2_100': (1.0, 1024, 2.278604, 0.146, 'tv:shufflenet_v2_x1_0'),
    'shufflenetv2_150': (1.5, 1024, 3.503624, 0.299, 'tv:shufflenet_v2_x1_5'),
    'shufflenetv2_200': (2.0, 2048, 7.393996, 0.591, 'tv:shufflenet_v2_x2_0'),
}
VARIANTS = {
    **{
        name: Variant(
            family='shufflenet',
            backbone=dict(type='eff_plugins.ShuffleNetV1', groups=groups, width=width, stem_channels=stem),
            params=params,
            macs=macs,
            source=source,
        )
        for name, (groups, width, stem, params, macs, source) in _V1.items()
    },
    **{
        name: Variant(
            family='shufflenet',
            backbone=dict(type='eff_plugins.ShuffleNetV2', width=width),
            params=params,
            macs=macs,
            source='parameters: torchvision; multiply-adds: ' + _AUTHORS,
            head=dict(hidden_channels=head, act='relu', norm_cfg=dict(type='BN')),
            oracle=oracle,
        )
        for name, (width, head, params, macs, oracle) in _V2.items()
    },
}
