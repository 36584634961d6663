_base_ = ['mmdet::_base_/models/retinanet_r50_fpn.py']
default_scope = 'mmdet'
model = dict(backbone=dict(type='eff_plugins.InvertedResidualNet'))
