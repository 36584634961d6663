# ResNet-50 with 1000 classes, from torchvision's weights: the host of dynamic networks on ImageNet.
_base_ = './classifier_in1k.py'
model = dict(
    backbone=dict(
        _delete_=True,
        type='eff_plugins.ResNet',
        depth=50,
        out_indices=(3,),
        init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet50'),
    ),
    head=dict(dropout=0.0, label_smoothing=0.0),
)
