# 4000 + 500 CIFAR-10 pictures in npz files, 32x32, 10 classes.
data_root = '{{$EFF_PLUGINS_DATA:data}}/cifar10/'
classes = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='ArrayImageDataset',
        data_root=data_root,
        ann_file='train.npz',
        classes=classes,
        pipeline=[
            dict(type='PadCrop', padding=4),
            dict(type='FlipImage'),
            dict(type='ResizeShortSide', size=96),
            dict(type='PackClsInputs'),
        ],
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='ArrayImageDataset',
        data_root=data_root,
        ann_file='val.npz',
        classes=classes,
        test_mode=True,
        pipeline=[dict(type='ResizeShortSide', size=96), dict(type='PackClsInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
