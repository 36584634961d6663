# ResNet-56 computed in patches of 4, 2 and 2 pixels.
_base_ = '../_base_/cifar10_r56_dynamic.py'
model = dict(
    backbone=dict(_delete_=True, type='eff_plugins.LASNet', granularity=(4, 2, 2), backbone={{_base_.model.backbone}})
)
