# Embedded data: one handwritten digit over a crop of a photograph, 32x32, 10 classes; enlarged, since the network has
# stride 32.
train_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='DigitClsDataset',
        split='train',
        pipeline=[dict(type='PadCrop', padding=4), dict(type='ResizeShortSide', size=96), dict(type='PackClsInputs')],
    ),
)
val_dataloader = dict(
    batch_size=64,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='DigitClsDataset',
        split='val',
        test_mode=True,
        pipeline=[dict(type='ResizeShortSide', size=96), dict(type='PackClsInputs')],
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_evaluator = val_evaluator
