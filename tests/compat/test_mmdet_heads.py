"""mmdet's SSD predicts."""

import pytest
import torch
from mmengine.config import ConfigDict


def test_ssd_predicts():
    pytest.importorskip('mmdet')
    from mmdet.models.dense_heads import SSDHead
    from mmdet.structures import DetDataSample

    head = SSDHead(
        num_classes=3,
        in_channels=(4,),
        anchor_generator=dict(
            type='mmdet.SSDAnchorGenerator',
            scale_major=False,
            strides=[16],
            ratios=[[2]],
            min_sizes=[16],
            max_sizes=[32],
        ),
        bbox_coder=dict(type='mmdet.DeltaXYWHBBoxCoder'),
        test_cfg=ConfigDict(nms_pre=10, nms=dict(type='nms', iou_threshold=0.5), score_thr=0.0, max_per_img=5),
    ).eval()
    sample = DetDataSample(metainfo=dict(img_shape=(32, 32), scale_factor=(1.0, 1.0), ori_shape=(32, 32)))
    (result,) = head.predict((torch.randn(1, 4, 2, 2),), [sample])
    assert 1 <= len(result) <= 5 and torch.isfinite(result.scores).all()
