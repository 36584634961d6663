# ResNet-32 computed pixel by pixel; 60 % of the dense network's multiply-adds at the end.
_base_ = [
    '../_base_/models/resnet32_cifar10.py',
    '../_base_/datasets/cifar10_32px.py',
    '../_base_/schedules/cifar_dynamic.py',
    '../_base_/cls_runtime.py',
]
model = dict(backbone=dict(_delete_=True, type='eff_plugins.DynConv', backbone={{_base_.model.backbone}}))
# the tools add the hooks that every run needs
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(type='eff_plugins.BudgetHook', budget=dict(start=1.0, end=0.6, form='linear', finish=0.6)),
    dict(type='eff_plugins.DistillationHook'),
]
