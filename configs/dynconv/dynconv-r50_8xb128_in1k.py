# ResNet-50 computed pixel by pixel; half of the dense network's multiply-adds on average.
_base_ = '../_base_/resnet_in1k_dynamic.py'
model = dict(backbone=dict(type='eff_plugins.DynConv'))
