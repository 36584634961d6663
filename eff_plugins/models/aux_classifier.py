"""Auxiliary classifiers inside a backbone, which send a gradient into its middle while it trains.

Source: Szegedy et al., CVPR 2015, section 5: GoogLeNet has one after block 4a and one after 4d, each with weight 0.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from eff_plugins.models.classifiers import ImageClassifier
from eff_plugins.models.layers.conv import ConvNormAct, init_conv_norm
from eff_plugins.registry import MODELS


@MODELS.register_module()
class AuxClsHead(BaseModule):
    """Average pooling, 1x1 convolution, two linear layers: (B, C, H, W) -> (B, num_classes).

    The paper pools 14x14 with 5x5 windows at stride 3, to 4x4; here any size is pooled to ``pooled`` x ``pooled``.

    Args:
        in_channels: C.
        num_classes: Number of classes.
        channels: Channels of the convolution.
        hidden_channels: Width of the first linear layer.
        pooled: Side after pooling.
        dropout: Probability of dropping a hidden feature in training.
        norm_cfg: Normalisation, BatchNorm by default.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        channels: int = 128,
        hidden_channels: int = 1024,
        pooled: int = 4,
        dropout: float = 0.7,
        norm_cfg: Mapping | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.pooled = pooled
        self.conv = ConvNormAct(in_channels, channels, norm_cfg=norm_cfg or dict(type='BN'), act='relu')
        self.fc1 = nn.Linear(channels * pooled**2, hidden_channels)
        self.dropout = nn.Dropout(dropout)
        self.fc2 = nn.Linear(hidden_channels, num_classes)

    def init_weights(self) -> None:
        init_conv_norm(self)
        super().init_weights()

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(F.adaptive_avg_pool2d(x, self.pooled)).flatten(1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


@MODELS.register_module()
class AuxImageClassifier(ImageClassifier):
    """An image classifier with auxiliary ones at blocks of its backbone; they take part in training only.

    GoogLeNet as published::

        dict(type='AuxImageClassifier', backbone=dict(type='GoogLeNet', out_indices=(4,)),
             head=dict(type='LinearClsHead', in_channels=1024, num_classes=1000, dropout=0.4),
             aux_heads={'stages.2.1': dict(type='AuxClsHead', in_channels=512, num_classes=1000),
                        'stages.2.4': dict(type='AuxClsHead', in_channels=528, num_classes=1000)})

    Args:
        backbone: Config of a backbone that returns a tuple of maps.
        head: Config of a head such as ``LinearClsHead``.
        aux_heads: Path of a block in the backbone -> config of the head that reads its output.
        aux_weight: Weight of each auxiliary loss; the main one has 1.
        data_preprocessor: See :class:`~eff_plugins.models.classifiers.ImageClassifier`.
        eval_size: As there, and so is ``eval_interpolation``.

    Raises:
        ValueError: The backbone has no block of such a path.
    """

    def __init__(
        self,
        backbone: dict,
        head: dict,
        aux_heads: Mapping[str, dict],
        aux_weight: float = 0.3,
        data_preprocessor: dict | None = None,
        eval_size: Sequence[int] | None = None,
        eval_interpolation: str = 'bicubic',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(backbone, head, data_preprocessor, eval_size, eval_interpolation, init_cfg)
        known = dict(self.backbone.named_modules())
        for path in aux_heads:
            if path not in known:
                raise ValueError(f'aux_heads: the backbone has no block {path!r}; its stages end at {[*known][-1]!r}')
        self.aux_weight = aux_weight
        self.aux_paths = tuple(aux_heads)
        self.aux_heads = nn.ModuleList(MODELS.build(config) for config in aux_heads.values())

    def forward(
        self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """As ``ImageClassifier``; mode ``'loss'`` adds ``loss_aux0``, ``loss_aux1`` ..."""
        if mode != 'loss':
            return super().forward(inputs, data_samples, mode)
        caught: dict[str, Tensor] = {}
        handles = []
        for path in self.aux_paths:

            def keep(module: nn.Module, args: object, output: Tensor, path: str = path) -> None:
                caught[path] = output

            handles.append(self.backbone.get_submodule(path).register_forward_hook(keep))
        try:
            logits = self.head(self.backbone(inputs))
        finally:
            for handle in handles:
                handle.remove()
        labels = torch.tensor([sample.gt_label for sample in data_samples or ()], device=logits.device)
        losses = {'loss': self.head.loss(logits, labels)}
        for i, (path, aux) in enumerate(zip(self.aux_paths, self.aux_heads, strict=True)):
            losses[f'loss_aux{i}'] = self.aux_weight * self.head.loss(aux(caught[path]), labels)
        return losses
