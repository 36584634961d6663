_base_ = [
    '../_base_/models/deformable-detr_effnet-lite0.py',
    '../_base_/datasets/coco_tiny_overfit16.py',
    '../_base_/schedules/overfit.py',
    '../_base_/det_runtime.py',
]
model = dict(
    backbone=dict(frozen_stages=1, norm_eval=True),
    encoder=dict(layer_cfg=dict(ffn_cfg=dict(ffn_drop=0.0))),
    decoder=dict(layer_cfg=dict(self_attn_cfg=dict(dropout=0.0), ffn_cfg=dict(ffn_drop=0.0))),
)
optim_wrapper = dict(optimizer=dict(lr=3e-4))
val_evaluator = dict(metric='bbox')
test_evaluator = val_evaluator
