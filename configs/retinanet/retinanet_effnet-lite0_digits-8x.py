# One detector for digits that span a factor of eight, at one zoom: what SAFD's zooms are held against.
_base_ = [
    '../_base_/models/retinanet_effnet-lite0.py',
    '../_base_/datasets/digits_det_8x.py',
    '../_base_/schedules/adamw.py',
    '../_base_/det_runtime.py',
]
# anchors of 16 to 203 pixels
model = dict(bbox_head=dict(num_classes=10, anchor_generator=dict(octave_base_scale=2)))
train_cfg = dict(max_epochs=5)
