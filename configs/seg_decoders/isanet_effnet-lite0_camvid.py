_base_ = [
    '../_base_/models/isanet_effnet-lite0.py',
    '../_base_/datasets/camvid.py',
    '../_base_/schedules/adamw.py',
    '../_base_/seg_runtime.py',
]
train_cfg = dict(max_epochs=16)
