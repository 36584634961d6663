# ResNet-50 whose convolutions are skipped where a low-cost layer beside them is zero; half of the multiply-adds on average.
_base_ = [
    '../_base_/models/resnet_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/dynamic_in1k.py',
    '../_base_/cls_runtime.py',
]
model = dict(backbone=dict(type='eff_plugins.LCCL'))
custom_hooks = [dict(type='eff_plugins.BudgetHook', budget=0.5), dict(type='eff_plugins.DistillationHook')]
