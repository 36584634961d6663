_base_ = [
    '../_base_/models/classifier_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_sgd.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(type='eff_plugins.ResNeXt', arch='resnext50_32x4d', out_indices=(3,)),
)
