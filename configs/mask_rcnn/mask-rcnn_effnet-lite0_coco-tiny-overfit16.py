_base_ = [
    '../_base_/models/mask-rcnn_effnet-lite0.py',
    '../_base_/datasets/coco_tiny_overfit16.py',
    '../_base_/schedules/overfit.py',
    '../_base_/det_runtime.py',
]
model = dict(
    backbone=dict(frozen_stages=1, norm_eval=True),
    neck=dict(norm_cfg=dict(type='GN', num_groups=16)),
    rpn_head=dict(anchor_generator=dict(scales=[4])),
    train_cfg=dict(rcnn=dict(sampler=dict(num=64))),
)
train_cfg = dict(max_epochs=6)
