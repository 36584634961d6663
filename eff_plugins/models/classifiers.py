"""Image classification on mmengine alone: a classifier, its head, and prediction on a user's own pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.model import BaseModel, BaseModule
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from eff_plugins.models.layers.conv import ConvNormAct, build_act, init_conv_norm
from eff_plugins.registry import MODELS


class ClsHead(BaseModule):
    """What heads of classifiers share: the loss.

    Args:
        num_classes: Number of classes.
        label_smoothing: Of the cross-entropy loss.
    """

    def __init__(self, num_classes: int, label_smoothing: float = 0.0, init_cfg: dict | None = None) -> None:
        super().__init__(init_cfg)
        if num_classes < 2:
            raise ValueError(f'num_classes={num_classes}: a classifier needs at least 2 classes')
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy; raises where a label is outside the classes, naming both."""
        if labels.numel() and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ValueError(
                f'labels run from {int(labels.min())} to {int(labels.max())}, but the head has num_classes={self.num_classes}'
            )
        return F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)


@MODELS.register_module()
class LinearClsHead(ClsHead):
    """Optional 1x1 convolution, global average pooling, dropout and a linear layer: (B, C, H, W) -> (B, num_classes).

    Args:
        in_channels: C of the last map of the backbone.
        num_classes: Number of classes.
        hidden_channels: Channels of the 1x1 convolution before pooling (EfficientNet's head); None leaves it out.
        pooled_channels: Channels of a linear layer between pooling and dropout (MobileNetV3's head); None leaves it out.
        act: Activation of both.
        input_act: Activation of the map itself, where the backbone ends linearly and no 1x1 convolution follows.
        norm_cfg: Normalisation of the convolution.
        dropout: Probability of dropping a pooled feature in training.
        label_smoothing: Of the cross-entropy loss.
        init_cfg: ``dict(type='Pretrained', checkpoint=..., prefix='fc')`` loads the linear layer alone, strictly, from a
            classifier's checkpoint in which it has that name.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        hidden_channels: int | None = None,
        pooled_channels: int | None = None,
        act: str = 'relu6',
        norm_cfg: Mapping | None = None,
        dropout: float = 0.0,
        label_smoothing: float = 0.0,
        input_act: str | None = None,
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(num_classes, label_smoothing, init_cfg)
        # What a network does not have is None: at batch 1 even the call of an empty module is seen.
        self.input_act = None if input_act is None else build_act(input_act, inplace=False)
        self.conv: nn.Module | None = None
        self.pooled: nn.Module | None = None
        if hidden_channels is not None:
            self.conv = ConvNormAct(in_channels, hidden_channels, norm_cfg=norm_cfg or dict(type='BN'), act=act)
        if pooled_channels is not None:
            self.pooled = nn.Linear(hidden_channels or in_channels, pooled_channels)
            self.pooled_act = build_act(act)
        self.dropout = nn.Dropout(dropout) if dropout else None
        self.fc = nn.Linear(pooled_channels or hidden_channels or in_channels, num_classes)

    def init_weights(self) -> None:
        init_conv_norm(self)
        if isinstance(self.init_cfg, dict) and self.init_cfg.get('type') == 'Pretrained':
            from eff_plugins.hub.load import load_part

            load_part(self.fc, self.init_cfg['checkpoint'], self.init_cfg.get('prefix', 'fc'))
        elif self.init_cfg:
            super().init_weights()
        self._is_init = True  # mmengine would list every parameter on the terminal

    def forward(self, feats: tuple[Tensor, ...]) -> Tensor:
        """Logits (B, num_classes) from the last of the backbone's maps."""
        x = feats[-1] if self.input_act is None else self.input_act(feats[-1])
        if self.conv is not None:
            x = self.conv(x)
        x = x.mean((2, 3))
        if self.pooled is not None:
            x = self.pooled_act(self.pooled(x))
        return self.fc(x if self.dropout is None else self.dropout(x))


@MODELS.register_module()
class ImageClassifier(BaseModel):
    """Backbone + head for image classification.

    Args:
        backbone: Config of a backbone that returns a tuple of maps, or the module.
        head: Config of a head such as :class:`LinearClsHead`, or the module.
        data_preprocessor: Config; mmengine's ``ImgDataPreprocessor`` normalises and stacks RGB images.
        eval_size: (short side, crop side) in pixels that ``predict`` resizes and centre-crops to; None leaves
            pictures as they are (they must then have one size).
        eval_interpolation: ``'bicubic'`` or ``'bilinear'``, of that resizing.
    """

    def __init__(
        self,
        backbone: dict | nn.Module,
        head: dict | nn.Module,
        data_preprocessor: dict | None = None,
        eval_size: Sequence[int] | None = None,
        eval_interpolation: str = 'bicubic',
        init_cfg: dict | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone: Any = backbone if isinstance(backbone, nn.Module) else MODELS.build(backbone)
        self.head: Any = head if isinstance(head, nn.Module) else MODELS.build(head)
        self.eval_size = None if eval_size is None else tuple(eval_size)
        self.eval_interpolation = eval_interpolation

    def forward(
        self, inputs: Tensor, data_samples: list[BaseDataElement] | None = None, mode: str = 'tensor'
    ) -> Tensor | dict[str, Tensor] | list[BaseDataElement]:
        """The three modes of mmengine's models.

        Args:
            inputs: (B, C, H, W), normalised by the data preprocessor.
            data_samples: One a picture, with ``gt_label`` (an int) in mode ``'loss'``.
            mode: ``'tensor'`` gives logits, ``'predict'`` the samples with ``pred_scores`` (num_classes,), ``'loss'`` a dict.
        """
        if mode == 'loss':
            labels = torch.tensor([sample.gt_label for sample in data_samples or ()], device=inputs.device)
            return self.losses(inputs, labels)
        if mode not in ('tensor', 'predict'):
            raise ValueError(f"mode={mode!r}: must be 'tensor', 'predict' or 'loss'")
        logits = self.logits(inputs)
        if mode == 'tensor':
            return logits
        samples = data_samples or [BaseDataElement() for _ in range(len(logits))]
        for sample, scores in zip(samples, logits.float().softmax(1), strict=True):
            sample.pred_scores = scores
        return samples

    def logits(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, num_classes)."""
        return self.head(self.backbone(inputs))

    def losses(self, inputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Of pictures (B, C, H, W) with labels (B,); what is named ``loss...`` is summed."""
        return {'loss': self.head.loss(self.logits(inputs), labels)}

    @torch.no_grad()
    def predict(self, images: Sequence[np.ndarray | str | Path], batch_size: int = 32) -> np.ndarray:
        """Class probabilities (N, num_classes) of pictures, preprocessing included.

        Args:
            images: (H, W, 3) uint8 RGB arrays or paths of picture files, in any mix and of any size.
            batch_size: Pictures computed at a time.

        Raises:
            ValueError: An array is not (H, W, 3) uint8, or a file does not decode; the message names which.
        """
        from eff_plugins.datasets.transforms import CenterCrop, ResizeShortSide, read_image

        if self.eval_size is not None:
            resize = ResizeShortSide(self.eval_size[0], self.eval_interpolation)
            crop = CenterCrop(self.eval_size[1])
        was_training = self.training
        self.eval()
        rows = []
        try:
            for start in range(0, len(images), batch_size):
                batch = []
                for index, image in enumerate(images[start : start + batch_size], start):
                    array = read_image(image) if isinstance(image, (str, Path)) else np.asarray(image)
                    if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8:
                        raise ValueError(
                            f'images[{index}] is {array.shape} {array.dtype}; it must be (H, W, 3) uint8 RGB'
                        )
                    if self.eval_size is not None:
                        array = crop.apply(resize.apply(array))
                    batch.append(torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))))
                inputs = self.data_preprocessor({'inputs': batch}, False)['inputs']
                rows.append(self(inputs).float().softmax(1).cpu().numpy())
        finally:
            self.train(was_training)
        return np.concatenate(rows) if rows else np.zeros((0, self.head.num_classes), np.float32)
