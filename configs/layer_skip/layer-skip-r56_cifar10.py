# ResNet-56 whose pictures skip blocks.
_base_ = '../_base_/cifar10_r56_dynamic.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.LayerSkip', backbone={{_base_.model.backbone}}))
