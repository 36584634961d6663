_base_ = [
    '../_base_/models/classifier_in1k.py',
    '../_base_/datasets/imagenet.py',
    '../_base_/schedules/imagenet_sgd.py',
    '../_base_/cls_runtime.py',
]
model = dict(
    backbone=dict(_delete_=True, type='eff_plugins.GoogLeNet', out_indices=(4,)),
    head=dict(dropout=0.4),
)
