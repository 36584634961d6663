# The 50 + 30 COCO 2017 images with masks, all stretched to 320x320: for heads that need equally large images in a batch.
_base_ = './coco_tiny_masks.py'
resize = dict(type='Resize', scale=(320, 320), keep_ratio=False)
train_pipeline = [
    dict(type='eff_plugins.LoadPicture'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    resize,
    dict(type='RandomFlip', prob=0.5),
    dict(type='PhotoMetricDistortion', hue_delta=9),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='eff_plugins.LoadPicture'),
    resize,
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
