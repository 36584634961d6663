# 16 of the COCO training images, without augmentation, for training AND evaluation: shows that a model can learn, no more.
_base_ = './coco_tiny_masks.py'
pipeline = [
    dict(type='eff_plugins.LoadPicture'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(type='Resize', scale=(416, 312), keep_ratio=True),
    dict(
        type='PackDetInputs',
        meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances'),
    ),
]
train_dataloader = dict(
    batch_size=2,
    dataset=dict(
        _delete_=True,
        type='RepeatDataset',  # an epoch of 200 steps instead of 8
        times=25,
        dataset=dict(
            type='eff_plugins.CocoDataset',
            data_root={{_base_.data_root}},
            ann_file='annotations/instances_train2017.json',
            data_prefix=dict(img='train2017/'),
            indices=16,
            pipeline=pipeline,
        ),
    ),
)
val_dataloader = dict(
    dataset=dict(
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
        indices=16,
        pipeline=pipeline,
    )
)
test_dataloader = val_dataloader
# Without a file the metric takes the truth from the samples, so that the other 34 images do not count as missed.
val_evaluator = dict(ann_file=None)
test_evaluator = val_evaluator
