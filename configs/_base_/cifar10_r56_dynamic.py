# As with ResNet-32, from the published weights of ResNet-56.
_base_ = './cifar10_r32_dynamic.py'
weights = '{{$EFF_PLUGINS_DATA:data}}/weights/cifar10_resnet56.pth'
model = dict(
    backbone=dict(depth=56, init_cfg=dict(checkpoint=weights)),
    head=dict(init_cfg=dict(checkpoint=weights)),
)
