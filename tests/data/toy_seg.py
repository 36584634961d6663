_base_ = '../../configs/segformer_head/segformer-head_effnet-lite0_camvid.py'
model = dict(
    backbone=dict(_delete_=True, type='ToySpatialNet', out_indices=(1, 2, 3, 4)), decode_head=dict(channels=16)
)
custom_imports = dict(imports=['tests.toy_spatial'], allow_failed_imports=False)
