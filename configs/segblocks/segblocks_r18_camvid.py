# The paper's encoder, ResNet-18, under the light decoder.
_base_ = './segblocks_effnet-lite0_camvid.py'
model = dict(
    data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
    backbone=dict(
        backbone=dict(
            _delete_=True,
            type='eff_plugins.ResNet',
            depth=18,
            init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18'),
        ),
    ),
)
