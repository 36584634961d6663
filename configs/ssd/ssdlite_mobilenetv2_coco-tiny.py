_base_ = './ssdlite_effnet-lite0_coco-tiny.py'
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(arch='mobilenetv2_100', init_cfg=dict(checkpoint='timm://mobilenetv2_100.ra_in1k')),
)
