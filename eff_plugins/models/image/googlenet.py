"""GoogLeNet: a stem and nine Inception blocks.

Source: Szegedy et al., "Going Deeper with Convolutions", CVPR 2015, table 1. BatchNorm after every convolution takes the
place of the paper's two local response normalisations, as later implementations do; everything else is as published.
torchvision's network, whose weights are common, differs in two places: its "5x5" filters are 3x3 and its last pooling is
2x2. Poolings round sizes up, without padding, so that a map's side may fall one short of ceil(input / stride) where the
input is no multiple of 32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from eff_plugins.models.image.base import ImageBackbone
from eff_plugins.models.image.zoo import Variant
from eff_plugins.models.layers.conv import ConvNormAct
from eff_plugins.models.layers.split_transform_merge import SplitTransformMerge
from eff_plugins.models.layers.stm_forms import Site, inception
from eff_plugins.registry import MODELS

# Stages 3, 4 and 5; a block's channels: 1x1, reduction before 3x3, 3x3, reduction before 5x5, 5x5, after pooling
STAGES = (
    ((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64)),
    (
        (192, 96, 208, 16, 48, 64),
        (160, 112, 224, 24, 64, 64),
        (128, 128, 256, 24, 64, 64),
        (112, 144, 288, 32, 64, 64),
        (256, 160, 320, 32, 128, 128),
    ),
    ((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


@MODELS.register_module()
class GoogLeNet(ImageBackbone):
    """GoogLeNet's backbone: (B, C, H, W) -> one map for each of ``out_indices``.

    Args:
        large_kernel: Side of the kernels that the paper has as 5x5; 3 in torchvision's network.
        last_pool: Side of the last pooling; 2 in torchvision's network.
        out_indices: Resolution levels to return, ascending: 0 = stride 2 (64 channels) ... 4 = stride 32 (1024).
        in_channels: Channels of the input.
        frozen_stages: -1 freezes nothing, 0 the stem (7x7), k also the first k of four stages.
        norm_cfg: Normalisation, BatchNorm by default.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute each block in the backward pass instead of storing its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights strictly.

    Raises:
        ValueError: A level the network does not have, or ``frozen_stages`` out of range.
    """

    def __init__(
        self,
        large_kernel: int = 5,
        last_pool: int = 3,
        out_indices: Sequence[int] = (1, 2, 3, 4),
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_cfg: Mapping | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, norm_eval, with_cp, init_cfg)
        norm_cfg = norm_cfg or dict(type='BN')
        self.set_stem(ConvNormAct(in_channels, 64, 7, 2, norm_cfg=norm_cfg, act='relu'), 64, stride=2)
        blocks: list[nn.Module] = [
            nn.MaxPool2d(3, 2, ceil_mode=True),
            ConvNormAct(64, 64, norm_cfg=norm_cfg, act='relu'),
            ConvNormAct(64, 192, 3, norm_cfg=norm_cfg, act='relu'),
        ]
        self.add_stage(blocks, channels := 192, stride := 4)
        for stage, pool in zip(STAGES, (3, 3, last_pool), strict=True):
            blocks = [nn.MaxPool2d(pool, 2, ceil_mode=True)]
            for widths in stage:
                out = widths[0] + widths[2] + widths[4] + widths[5]
                block = inception(Site(channels, out), widths, large_kernel)
                blocks.append(SplitTransformMerge(channels, out, form=block, norm_cfg=norm_cfg))
                channels = out
            stride *= 2
            self.add_stage(blocks, channels, stride)
        self.finish(out_indices, frozen_stages)


# Table 1's operations add up to 1.502 G, but it counts 34 M for the first convolution, which has 118 M (7 * 7 * 3 * 64 *
# 112 * 112).
_PAPER = (
    'Szegedy et al., CVPR 2015, table 1, first convolution corrected; parameters of its Caffe model (Open Model Zoo)'
)
VARIANTS = {
    'googlenet': Variant(
        family='googlenet',
        backbone=dict(type='eff_plugins.GoogLeNet'),
        params=6.999,
        macs=1.586,
        source=_PAPER,
        head=dict(dropout=0.4),
    ),
    'googlenet_tv': Variant(
        family='googlenet',
        backbone=dict(type='eff_plugins.GoogLeNet', large_kernel=3, last_pool=2, norm_cfg=dict(type='BN', eps=1e-3)),
        params=6.624904,
        macs=1.498,
        source='torchvision',
        head=dict(dropout=0.2),
        oracle='tv:googlenet',
    ),
}
