_base_ = [
    '../_base_/models/faster-rcnn_effnet-lite0.py',
    '../_base_/datasets/digits_det.py',
    '../_base_/schedules/adamw.py',
    '../_base_/det_runtime.py',
]
model = dict(roi_head=dict(bbox_head=dict(num_classes=10)))
train_cfg = dict(max_epochs=5)
