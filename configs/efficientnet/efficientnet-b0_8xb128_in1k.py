_base_ = [
    '../_base_/models/classifier_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_sgd.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(arch='efficientnet_b0'),
    head=dict(hidden_channels=1280, act='swish'),
)
