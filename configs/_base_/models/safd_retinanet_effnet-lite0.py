# A RetinaNet that knows objects of about 24 to 48 pixels alone: two levels, and no stage behind stride 16.
_base_ = './retinanet_effnet-lite0.py'
model = dict(
    backbone=dict(out_strides=(8, 16)),
    neck=dict(num_outs=2, add_extra_convs=False),
    bbox_head=dict(num_classes=10, anchor_generator=dict(octave_base_scale=3, strides=[8, 16])),
    train_cfg=dict(assigner=dict(ignore_iof_thr=0.5)),  # objects of other sizes are neither right nor wrong
)
