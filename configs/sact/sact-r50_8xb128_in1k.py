# ResNet-50 in which each pixel of a stage goes through as many blocks as it needs; the paper's cost of a block.
_base_ = [
    '../_base_/models/resnet_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/dynamic_in1k.py',
    '../_base_/cls_runtime.py',
]
model = dict(backbone=dict(type='eff_plugins.SACT'))
custom_hooks = [
    dict(type='eff_plugins.BudgetHook', budget=0.5, losses=dict(ponder=0.005)),
    dict(type='eff_plugins.DistillationHook'),
]
