"""A detector that chooses its zooms, as a case of :mod:`eff_plugins.testing.conformance`; needs mmdet."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from eff_plugins.compat import require

require('mmdet', 'eff_plugins.testing.zooms')

from mmcv.ops import batched_nms  # noqa: E402
from mmdet.structures import DetDataSample  # noqa: E402
from mmdet.utils import register_all_modules  # noqa: E402
from mmengine.config import ConfigDict  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402
from mmengine.structures import InstanceData  # noqa: E402

from eff_plugins.models.resolution.safd import ScaleAwareDetector  # noqa: E402
from eff_plugins.registry import MODELS  # noqa: E402
from eff_plugins.testing.case import Case  # noqa: E402

SIZE_RANGE = (16, 32)
BACKBONE = dict(
    type='eff_plugins.InvertedResidualNet',
    arch=dict(
        stages=[dict(channels=channels, repeats=1, expand=2, stride=2) for channels in (8, 12, 16)], stem_channels=8
    ),
    out_indices=(2, 3),
)


def detector_config() -> dict[str, Any]:
    """A tiny RetinaNet of two levels and three classes."""
    return dict(
        type='RetinaNet',
        data_preprocessor=dict(type='DetDataPreprocessor', mean=[127.0] * 3, std=[64.0] * 3, pad_size_divisor=32),
        backbone=BACKBONE,
        neck=dict(type='FPN', in_channels=[12, 16], out_channels=16, num_outs=2),
        bbox_head=dict(
            type='RetinaHead',
            num_classes=3,
            in_channels=16,
            feat_channels=16,
            stacked_convs=1,
            anchor_generator=dict(
                type='AnchorGenerator', octave_base_scale=3, scales_per_octave=1, ratios=[1.0], strides=[8, 16]
            ),
            bbox_coder=dict(type='DeltaXYWHBBoxCoder'),
            loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0),
        ),
        train_cfg=dict(
            assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=0.5),
            sampler=dict(type='PseudoSampler'),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        test_cfg=dict(
            nms_pre=50, min_bbox_size=0, score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20
        ),
    )


def build_detector(kind: type = ScaleAwareDetector, **changes: Any) -> Any:
    """A :class:`ScaleAwareDetector`, or a class derived from it, around that RetinaNet."""
    register_all_modules(init_default_scope=False)
    options: dict[str, Any] = dict(
        detector=detector_config(),
        size_range=SIZE_RANGE,
        proposal=dict(octaves=(-3.0, 0.0), bins=6, size=32, channels=(4, 8)),
        crop=64,
    )
    with DefaultScope.overwrite_default_scope('mmdet'):
        return kind(**ConfigDict({**options, **changes}))


class OfPictures(ScaleAwareDetector):
    """Called with pictures (B, 3, H, W) alone, as the checks call a network.

    In evaluation it returns the boxes (B, max_per_img, 6), corners, score and label, zeros behind the last; in training,
    which decides nothing, the losses for two objects in the middle.
    """

    def forward(self, inputs: Tensor) -> Any:  # type: ignore[override]
        samples = [self._sample(tuple(inputs.shape[2:])) for _ in inputs]
        if self.training:
            return self.loss(inputs, samples)
        rows = inputs.new_zeros(len(inputs), self.max_per_img, 6)
        for row, sample in zip(rows, self.predict(inputs, samples), strict=True):
            found = sample.pred_instances
            parts = (found.bboxes, found.scores[:, None], found.labels[:, None])
            row[: len(found)] = torch.cat([part.to(row.dtype) for part in parts], 1)
        return rows

    @staticmethod
    def _sample(size: tuple[int, ...]) -> DetDataSample:
        sample = DetDataSample(
            metainfo=dict(
                img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), batch_input_shape=size, pad_shape=size
            )
        )
        boxes = torch.tensor([[4.0, 4, 14, 16], [10, 8, 40, 36]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([0, 2]))
        return sample


class Pyramid(nn.Module):
    """The dense reference: the bare detector, shown each picture at zooms that bring all sizes into its range."""

    ZOOMED = (-2.75, -1.75, -0.75)  # octaves of an object's side to the picture's that a zoom brings to the middle

    def __init__(self) -> None:
        super().__init__()
        register_all_modules(init_default_scope=False)
        with DefaultScope.overwrite_default_scope('mmdet'):
            self.detector: Any = MODELS.build(ConfigDict(detector_config()))

    def forward(self, inputs: Tensor) -> Tensor:
        rows = inputs.new_zeros(len(inputs), 100, 6)
        middle = (SIZE_RANGE[0] * SIZE_RANGE[1]) ** 0.5
        for row, picture in zip(rows, inputs, strict=True):
            zooms = [middle / (2**octave * max(picture.shape[1:])) for octave in self.ZOOMED]
            boxes, scores, labels = (
                torch.cat(parts) for parts in zip(*(self._at(picture, z) for z in zooms), strict=True)
            )
            found, keep = batched_nms(boxes, scores, labels, dict(type='nms', iou_threshold=0.5))
            found, labels = found[:100], labels[keep][:100]
            row[: len(found)] = torch.cat([found, labels[:, None].to(found.dtype)], 1)
        return rows

    def _at(self, picture: Tensor, zoom: float) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, scores and labels at one zoom, of sizes within half an octave of the detector's range."""
        height, width = (round(side * zoom) for side in picture.shape[1:])
        zoomed = F.interpolate(picture[None], (height, width), mode='bilinear', antialias=True)
        zoomed = F.pad(zoomed, (0, -width % 32, 0, -height % 32))
        shape = tuple(zoomed.shape[2:])
        meta = dict(img_shape=(height, width), ori_shape=(height, width), scale_factor=(1.0, 1.0))
        sample = DetDataSample(metainfo={**meta, 'batch_input_shape': shape, 'pad_shape': shape})
        found = self.detector.predict(zoomed, [sample], rescale=False)[0].pred_instances
        sides = (found.bboxes[:, 2:] - found.bboxes[:, :2]).prod(1).clamp(min=1e-6).sqrt()
        near = (sides > SIZE_RANGE[0] / 2**0.5) & (sides < SIZE_RANGE[1] * 2**0.5)
        return found.bboxes[near] / zoom, found.scores[near], found.labels[near]


def spread_zooms(model: nn.Module, x: Tensor) -> None:
    """Let pictures differ in what they ask for."""
    net: Any = model
    nn.init.normal_(net.spn.bins.weight, std=2.0, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        net.spn.bins.bias -= net.spn(list(x)).mean(0)


ZOOMS = Case(
    lambda: build_detector(OfPictures),
    Pyramid,
    (3, 3, 64, 56),
    (51, 67),
    vary=spread_zooms,
    step=0.15,  # three pictures of some zooms each
    exceptions={
        'masked_macs': 'it trains on crops of the pictures, and decides nothing then',
        'bf16': "mmcv's NMS has no bfloat16, which holds a box to some pixels; detectors run under autocast",
    },
)
