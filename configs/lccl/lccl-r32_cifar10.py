# ResNet-32 whose convolutions are skipped where a low-cost layer beside them is zero.
_base_ = '../_base_/cifar10_r32_dynamic.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.LCCL', backbone={{_base_.model.backbone}}))
