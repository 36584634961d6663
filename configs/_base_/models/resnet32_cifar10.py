# The CIFAR ResNet-32 with its published weights, classifier included; BatchNorm keeps its statistics.
weights = '{{$EFF_PLUGINS_DATA:data}}/weights/cifar10_resnet32.pth'
model = dict(
    type='ImageClassifier',
    data_preprocessor=dict(type='ImgDataPreprocessor', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        type='eff_plugins.CifarResNet',
        depth=32,
        norm_eval=True,
        init_cfg=dict(type='Pretrained', checkpoint=weights),
    ),
    head=dict(
        type='LinearClsHead',
        in_channels=64,
        num_classes=10,
        init_cfg=dict(type='Pretrained', checkpoint=weights, prefix='linear'),
    ),
)
