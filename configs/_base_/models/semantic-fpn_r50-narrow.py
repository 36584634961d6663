# mmseg's Semantic FPN over its ResNet-50 at a quarter of the width, untrained, with a narrow neck and head: made for a CPU.
_base_ = 'mmseg::_base_/models/fpn_r50.py'
model = dict(
    pretrained=None,
    data_preprocessor=dict(
        mean=[127.0] * 3, std=[64.0] * 3, bgr_to_rgb=True, size_divisor=32, test_cfg=dict(size_divisor=32)
    ),
    backbone=dict(stem_channels=16, base_channels=16, norm_cfg=dict(type='BN')),
    neck=dict(in_channels=[64, 128, 256, 512], out_channels=48),
    decode_head=dict(in_channels=[48] * 4, channels=48, num_classes=11, norm_cfg=dict(type='BN')),
)
