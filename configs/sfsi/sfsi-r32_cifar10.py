# ResNet-32 computed at sampled pixels, the others interpolated from those around them.
_base_ = '../_base_/cifar10_r32_dynamic.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.SFSI', window=5, backbone={{_base_.model.backbone}}))
