# ResNet-50 computed in patches of 8, 4, 7 and 1 pixels; half of the dense network's multiply-adds on average.
_base_ = [
    '../_base_/models/resnet_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/dynamic_in1k.py',
    '../_base_/cls_runtime.py',
]
model = dict(backbone=dict(type='eff_plugins.LASNet', granularity=(8, 4, 7, 1)))
custom_hooks = [dict(type='eff_plugins.BudgetHook', budget=0.5), dict(type='eff_plugins.DistillationHook')]
