_base_ = [
    '../_base_/models/tsm_effnet-lite0.py',
    '../_base_/datasets/digit_motions.py',
    '../_base_/schedules/adamw.py',
    '../_base_/action_runtime.py',
]
# Differences look unlike photographs: the normalisation learns their statistics, and all but the first layers learn fully.
model = dict(
    backbone=dict(backbone=dict(frozen_stages=2, norm_cfg=dict(type='BN', momentum=0.1))),
    cls_head=dict(num_classes=8, dropout_ratio=0.2),
)
optim_wrapper = dict(
    optimizer=dict(lr=2e-3),
    paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))),
)
train_cfg = dict(max_epochs=2)
