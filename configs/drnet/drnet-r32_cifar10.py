# ResNet-32 with its published weights, each picture at 32, 24 or 16 pixels: the paper's ratios. BatchNorm learns the statistics
# of each resolution.
_base_ = [
    '../_base_/models/resnet32_cifar10.py',
    '../_base_/datasets/cifar10_32px.py',
    '../_base_/schedules/cifar_dynamic.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    type='DRNet',
    backbone=dict(norm_eval=False),
    resolutions=(32, 24, 16),
    predictor=dict(size=32, channels=(16, 32, 64)),
)
train_dataloader = dict(batch_size=32)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(predictor=dict(lr_mult=3.0))))
# the tools add the hooks that every run needs
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(
        type='eff_plugins.BudgetHook',
        budget=0.6,
        losses=dict(hinge=2.0),
        temperature=dict(start=1.0, end=1.0, form='constant'),
    ),
]
