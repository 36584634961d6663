# The plain network to compare with, trained from nothing on parts of the pictures, so that it takes minutes on a CPU.
_base_ = [
    '../_base_/models/retinanet_r50-narrow.py',
    '../_base_/datasets/digits_det.py',
    '../_base_/schedules/adamw.py',
    '../_base_/det_runtime.py',
]
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(320, 320), ratio_range=(0.8, 1.2), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(128, 128)),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
train_cfg = dict(max_epochs=8)
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
