# ResNet-56 computed pixel by pixel.
_base_ = '../_base_/cifar10_r56_dynamic.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.DynConv', backbone={{_base_.model.backbone}}))
