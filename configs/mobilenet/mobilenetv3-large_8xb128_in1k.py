_base_ = [
    '../_base_/models/classifier_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_sgd.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(arch='mobilenetv3_large'),
    head=dict(
        hidden_channels=960, pooled_channels=1280, act='hswish', norm_cfg=dict(type='BN', eps=1e-3, momentum=0.01)
    ),
)
