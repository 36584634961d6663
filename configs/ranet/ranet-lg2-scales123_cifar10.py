# The paper's smaller CIFAR network: three sub-networks at 8, 16 and 32 pixels, six exits.
_base_ = ['../_base_/datasets/cifar10_32px.py', '../_base_/schedules/cifar_sgd.py', '../_base_/cls_runtime.py']
model = dict(
    type='EarlyExitClassifier',
    data_preprocessor=dict(type='ImgDataPreprocessor', mean=[125.3, 123.0, 113.9], std=[63.0, 62.1, 66.7]),
    backbone=dict(type='RANet', scales=(1, 2, 3), step=2, step_mode='lg'),
    num_classes=10,
)
