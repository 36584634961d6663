# RetinaNet whose EfficientNet-Lite0 computes its residual blocks in patches of 4 pixels.
_base_ = '../_base_/bccd_lite0_dynamic.py'
model = dict(backbone=dict(_delete_=True, type='eff_plugins.LASNet', granularity=4, backbone={{_base_.model.backbone}}))
