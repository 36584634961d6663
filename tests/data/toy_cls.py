_base_ = '../../configs/image_classification/effnet-lite0_cifar10.py'
model = dict(
    backbone=dict(_delete_=True, type='ToySpatialNet'),
    head=dict(_delete_=True, type='LinearClsHead', in_channels='auto', num_classes=10),
)
custom_imports = dict(imports=['tests.toy_spatial'], allow_failed_imports=False)
