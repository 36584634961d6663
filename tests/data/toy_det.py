_base_ = '../../configs/retinanet/retinanet_effnet-lite0_bccd.py'
model = dict(
    backbone=dict(_delete_=True, type='ToySpatialNet', out_indices=(2, 3, 4)),
    neck=dict(out_channels=16),
    bbox_head=dict(feat_channels=16, stacked_convs=1),
)
custom_imports = dict(imports=['tests.toy_spatial'], allow_failed_imports=False)
