_base_ = ['mmseg::_base_/models/fcn_r50-d8.py']
default_scope = 'mmseg'
model = dict(backbone=dict(type='eff_plugins.InvertedResidualNet'))
