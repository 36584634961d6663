# RetinaNet whose EfficientNet-Lite0 samples its residual blocks and interpolates between the samples.
_base_ = '../_base_/bccd_lite0_dynamic.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.SFSI', window=5, backbone={{_base_.model.backbone}}))
