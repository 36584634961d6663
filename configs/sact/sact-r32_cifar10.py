# ResNet-32 in which each pixel of a stage goes through as many blocks as it needs.
_base_ = '../_base_/cifar10_r32_dynamic.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.SACT', backbone={{_base_.model.backbone}}))
# halting has no budget: what a block costs is the knob
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(type='eff_plugins.BudgetHook', budget=0.6, losses=dict(ponder=0.15)),
    dict(type='eff_plugins.DistillationHook'),
]
