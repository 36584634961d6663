# ResNet-32 with its published weights learns to compute less: from the dense network towards 60 % of its multiply-adds,
# taught by the dense network. A config puts a dynamic network in the backbone's place.
_base_ = [
    './models/resnet32_cifar10.py',
    './datasets/cifar10_32px.py',
    './schedules/cifar_dynamic.py',
    './cls_runtime.py',
]
train_dataloader = dict(batch_size=32)
# the tools add the hooks that every run needs; the gap's weight makes the network spend the budget and no more
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(
        type='eff_plugins.BudgetHook',
        budget=dict(start=1.0, end=0.6, form='linear', finish=0.5),
        losses=dict(gap=50.0, bounds=10.0),
    ),
    dict(type='eff_plugins.DistillationHook'),
]
