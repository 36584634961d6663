# ResNet-50 computed at sampled pixels, the others interpolated from those around them; the paper's loss on the cost.
_base_ = [
    '../_base_/models/resnet_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/dynamic_in1k.py',
    '../_base_/cls_runtime.py',
]
model = dict(backbone=dict(type='eff_plugins.SFSI'))
custom_hooks = [
    dict(type='eff_plugins.BudgetHook', budget=0.5, losses=dict(ratios=0.1)),
    dict(type='eff_plugins.DistillationHook'),
]
