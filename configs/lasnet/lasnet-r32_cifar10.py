# ResNet-32 computed in patches of 4, 2 and 2 pixels; 60 % of the dense network's multiply-adds at the end.
_base_ = [
    '../_base_/models/resnet32_cifar10.py',
    '../_base_/datasets/cifar10_32px.py',
    '../_base_/schedules/cifar_dynamic.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(_delete_=True, type='eff_plugins.LASNet', granularity=(4, 2, 2), backbone={{_base_.model.backbone}})
)
# the tools add the hooks that every run needs
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(type='eff_plugins.BudgetHook', budget=dict(start=1.0, end=0.6, form='linear', finish=0.6)),
    dict(type='eff_plugins.DistillationHook'),
]
