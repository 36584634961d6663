_base_ = [
    '../_base_/models/solov2-light_effnet-lite0.py',
    '../_base_/datasets/coco_tiny_overfit16.py',
    '../_base_/schedules/overfit.py',
    '../_base_/det_runtime.py',
]
model = dict(backbone=dict(frozen_stages=1, norm_eval=True))
val_evaluator = dict(metric='segm')
test_evaluator = val_evaluator
