_base_ = [
    '../_base_/models/classifier_effnet-lite0.py',
    '../_base_/datasets/cifar10.py',
    '../_base_/schedules/adamw.py',
    '../_base_/cls_runtime.py',
]
train_cfg = dict(max_epochs=6)
