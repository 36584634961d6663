# ResNet-50 computed in patches of 8, 4, 7 and 1 pixels; half of the dense network's multiply-adds on average.
_base_ = '../_base_/resnet_in1k_dynamic.py'
model = dict(backbone=dict(type='eff_plugins.LASNet', granularity=(8, 4, 7, 1)))
