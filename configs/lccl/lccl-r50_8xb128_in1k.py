# ResNet-50 whose convolutions are skipped where a low-cost layer beside them is zero; half of the multiply-adds on average.
_base_ = '../_base_/resnet_in1k_dynamic.py'
model = dict(backbone=dict(type='eff_plugins.LCCL'))
