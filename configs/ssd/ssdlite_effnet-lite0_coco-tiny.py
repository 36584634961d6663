_base_ = [
    '../_base_/models/ssdlite_effnet-lite0.py',
    '../_base_/datasets/coco_tiny_square.py',
    '../_base_/schedules/adamw.py',
    '../_base_/det_runtime.py',
]
train_cfg = dict(max_epochs=30)
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
