# The plain network to compare with: trained from nothing on parts of pictures read at 256x192, minutes on a CPU.
_base_ = [
    '../_base_/models/retinanet_r50-narrow.py',
    '../_base_/datasets/bccd.py',
    '../_base_/schedules/adamw.py',
    '../_base_/det_runtime.py',
]
model = dict(bbox_head=dict(num_classes=3))
train_pipeline = [
    dict(type='eff_plugins.LoadPicture'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(256, 192), ratio_range=(0.85, 1.2), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(160, 160)),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='eff_plugins.LoadPicture'),
    dict(type='Resize', scale=(256, 192), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
optim_wrapper = dict(optimizer=dict(lr=2e-3), paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=1.0))))
train_cfg = dict(max_epochs=12)
