# The paper's network on ImageNet: 224, 168 or 112 pixels, two thirds of the multiply-adds.
_base_ = [
    '../_base_/models/classifier_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_sgd.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    type='DRNet',
    backbone=dict(_delete_=True, type='eff_plugins.ResNeXt', arch='resnet50', out_indices=(3,)),
    head=dict(dropout=0.0),
    resolutions=(224, 168, 112),
)
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(
        type='eff_plugins.BudgetHook',
        budget=0.66,
        losses=dict(hinge=2.0),
        temperature=dict(start=1.0, end=1.0, form='constant'),
    ),
]
