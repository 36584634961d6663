_base_ = [
    '../_base_/models/tsm_effnet-lite0.py',
    '../_base_/datasets/digit_motions.py',
    '../_base_/schedules/adamw.py',
    '../_base_/action_runtime.py',
]
# Motion is learnt from stride 8 on; what is before keeps its ImageNet weights, which halves the time of a CPU.
model = dict(
    backbone=dict(backbone=dict(frozen_stages=2, norm_eval=True)),
    cls_head=dict(num_classes=8, dropout_ratio=0.2),
)
train_cfg = dict(max_epochs=8)
