# ResNet-50 in which each pixel of a stage goes through as many blocks as it needs; the paper's cost of a block.
_base_ = '../_base_/resnet_in1k_dynamic.py'
model = dict(backbone=dict(type='eff_plugins.SACT'))
custom_hooks = [
    dict(type='eff_plugins.BudgetHook', budget=0.5, losses=dict(ponder=0.005)),
    dict(type='eff_plugins.DistillationHook'),
]
