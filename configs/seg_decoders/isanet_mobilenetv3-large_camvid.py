_base_ = './isanet_effnet-lite0_camvid.py'
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(arch='mobilenetv3_large', init_cfg=dict(checkpoint='tv://mobilenet_v3_large/IMAGENET1K_V2')),
)
