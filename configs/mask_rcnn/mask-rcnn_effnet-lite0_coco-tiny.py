_base_ = [
    '../_base_/models/mask-rcnn_effnet-lite0.py',
    '../_base_/datasets/coco_tiny_masks.py',
    '../_base_/schedules/adamw.py',
    '../_base_/det_runtime.py',
]
train_cfg = dict(max_epochs=30)
