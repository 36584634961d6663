"""The small ResNets that He et al. (CVPR 2016, section 4.2) train on CIFAR-10, written from the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from eff_plugins.models.image.base import ImageBackbone
from eff_plugins.models.image.resnet import BasicBlock, Layout
from eff_plugins.models.layers.conv import ConvNormAct
from eff_plugins.registry import MODELS


class ThinShortcut(nn.Module):
    """Every second position, zeros for the new channels (option A of the paper): (B, C, H, W) -> (B, C', H / 2, W / 2).

    Args:
        channels: C' - C, half of them put before and half after.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        before = self.channels // 2
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, before, self.channels - before))


@MODELS.register_module()
class CifarResNet(ImageBackbone):
    """ResNet-20, 32, 44, 56 or 110 for pictures of about 32x32: (B, C, H, W) -> one map for each of ``out_indices``.

    A 3x3 convolution, then three stages of (depth - 2) / 6 basic blocks with 16, 32 and 64 channels at strides 1, 2 and 4.

    Args:
        depth: 6 n + 2.
        in_channels: C.
        out_indices: Resolution levels, 0 = stride 2 and 1 = stride 4.
        frozen_stages: -1 freezes nothing, 0 the stem, k the stem and the first k stages.
        norm_cfg: Normalisation.
        norm_eval: Keep BatchNorm's running statistics fixed in training.
        with_cp: Recompute each block in the backward pass instead of storing its activations.
        init_cfg: ``dict(type='Pretrained', checkpoint=...)`` loads weights strictly, a classifier apart.

    Raises:
        ValueError: A depth that is not 6 n + 2, or another argument out of range.
    """

    def __init__(
        self,
        depth: int = 32,
        in_channels: int = 3,
        out_indices: Sequence[int] = (1,),
        frozen_stages: int = -1,
        norm_cfg: Mapping | None = None,
        norm_eval: bool = False,
        with_cp: bool = False,
        init_cfg: dict | None = None,
    ) -> None:
        if depth < 8 or depth % 6 != 2:
            raise ValueError(f'depth={depth} of a CIFAR ResNet must be 6 n + 2, such as 20, 32 or 56')
        super().__init__(in_channels, norm_eval, with_cp, init_cfg)
        norm = {'type': 'BN', **(norm_cfg or {})}
        self.set_stem(ConvNormAct(in_channels, 16, 3, norm_cfg=norm, act='relu'), 16, 1)
        channels, stride = 16, 1
        for width in (16, 32, 64):
            blocks = []
            for j in range((depth - 2) // 6):
                step = 2 if j == 0 and width > 16 else 1
                shortcut = ThinShortcut(width - channels) if step == 2 else None
                block = BasicBlock(channels, width, shortcut, Layout(norm, step))
                block.owns_input = j > 0
                blocks.append(block)
                channels, stride = width, stride * step
            self.add_stage(blocks, width, stride)
        self.finish(out_indices, frozen_stages)

    def own_key(self, key: str) -> str | None:
        """The name here of a key of the usual checkpoints (``conv1``, ``bn1``, ``layer1.0.…``); None for their classifier."""
        first, _, rest = key.partition('.')
        if first in ('linear', 'fc'):
            return None
        if first in ('conv1', 'bn1'):
            return f'stem.{first[:-1].replace("bn", "norm")}.{rest}'
        return f'stages.{int(first[5:]) - 1}.{rest}' if first.startswith('layer') else key
