_base_ = [
    '../_base_/models/solo_effnet-lite0.py',
    '../_base_/datasets/coco_tiny_masks.py',
    '../_base_/schedules/adamw.py',
    '../_base_/det_runtime.py',
]
train_cfg = dict(max_epochs=30)
val_evaluator = dict(metric='segm')  # SOLO predicts masks, no boxes
test_evaluator = val_evaluator
