_base_ = './lasnet-r50_8xb128_in1k.py'
model = dict(backbone=dict(depth=101, init_cfg=dict(checkpoint='torchvision://resnet101')))
