# mmdet's RetinaNet over its ResNet-50 at a quarter of the width, with a narrow, normalised neck and head: trains from
# nothing on a CPU.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[64.0] * 3, bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        stem_channels=16, base_channels=16, out_indices=(1, 2, 3), frozen_stages=-1, norm_eval=False, init_cfg=None
    ),
    neck=dict(in_channels=[128, 256, 512], out_channels=48, start_level=0, num_outs=3, norm_cfg=dict(type='BN')),
    bbox_head=dict(
        num_classes=10,
        in_channels=48,
        feat_channels=48,
        stacked_convs=1,
        norm_cfg=dict(type='BN'),
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32]),
    ),
)
