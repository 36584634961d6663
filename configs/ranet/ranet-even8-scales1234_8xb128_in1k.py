# The paper's ImageNet network with 32 base channels: four sub-networks at 7, 14, 28 and 56 pixels, eight exits.
_base_ = ['../_base_/datasets/imagenet.py', '../_base_/schedules/imagenet_sgd.py', '../_base_/cls_runtime.py']
model = dict(
    type='EarlyExitClassifier',
    data_preprocessor=dict(type='ImgDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        type='RANet',
        scales=(1, 2, 3, 4),
        channels=32,
        growth_rate=16,
        growth_factors=(4, 2, 2, 1),
        bottleneck_factors=(4, 2, 2, 1),
        step=8,
        step_mode='even',
        classifier_channels=None,
        large_stem=True,
    ),
    num_classes=1000,
)
