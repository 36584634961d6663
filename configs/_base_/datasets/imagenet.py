# ImageNet-1k in folders, one a class: imagenet/train/n01440764/*.JPEG ...; every epoch is validated.
data_root = '{{$EFF_PLUGINS_DATA:data}}/imagenet/'
train_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='FolderImageDataset',
        data_root=data_root + 'train',
        pipeline=[
            dict(type='LoadImage'),
            dict(type='RandomAreaCrop', size=224),
            dict(type='FlipImage'),
            dict(type='PackClsInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='FolderImageDataset',
        data_root=data_root + 'val',
        test_mode=True,
        pipeline=[
            dict(type='LoadImage'),
            dict(type='ResizeShortSide', size=256),
            dict(type='CenterCrop', size=224),
            dict(type='PackClsInputs'),
        ],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
