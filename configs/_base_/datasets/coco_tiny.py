# 50 + 30 COCO 2017 images: enough to see that a model learns, not to measure it.
_base_ = './bccd.py'
data_root = '{{$EFF_PLUGINS_DATA:data}}/coco_tiny/'
train_dataloader = dict(
    batch_size=4,
    dataset=dict(
        data_root=data_root,
        metainfo=dict(_delete_=True),
        ann_file='annotations/instances_train2017.json',
        data_prefix=dict(img='train2017/'),
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=dict(_delete_=True),
        ann_file='annotations/instances_val2017.json',
        data_prefix=dict(img='val2017/'),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=data_root + 'annotations/instances_val2017.json')
test_evaluator = val_evaluator
