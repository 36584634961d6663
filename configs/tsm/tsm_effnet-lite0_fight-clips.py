_base_ = [
    '../_base_/models/tsm_effnet-lite0.py',
    '../_base_/datasets/fight_clips.py',
    '../_base_/schedules/adamw.py',
    '../_base_/action_runtime.py',
]
# 160 clips: the first four stages keep their ImageNet weights, and the normalisation its ImageNet statistics.
model = dict(
    backbone=dict(backbone=dict(frozen_stages=3, norm_eval=True)),
    cls_head=dict(num_classes=2, label_smooth_eps=0.1),
)
train_cfg = dict(max_epochs=6)
