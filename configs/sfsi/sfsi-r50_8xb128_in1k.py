# ResNet-50 computed at sampled pixels, the others interpolated from those around them; the paper's loss on the cost.
_base_ = '../_base_/resnet_in1k_dynamic.py'
model = dict(backbone=dict(type='eff_plugins.SFSI'))
custom_hooks = [
    dict(type='eff_plugins.BudgetHook', budget=0.5, losses=dict(ratios=0.1)),
    dict(type='eff_plugins.DistillationHook'),
]
