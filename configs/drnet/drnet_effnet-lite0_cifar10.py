# Each picture at 64, 48 or 32 pixels, half of the dense network's multiply-adds on average. 3600 pictures train it; the 400
# behind them are for calibration.
_base_ = '../image_classification/effnet-lite0_cifar10.py'
model = dict(type='DRNet', resolutions=(64, 48, 32), predictor=dict(size=32, channels=(16, 32, 64)))
train_dataloader = dict(
    dataset=dict(
        indices=3600,
        pipeline=[
            dict(type='PadCrop', padding=4),
            dict(type='FlipImage'),
            dict(type='ResizeShortSide', size=64),
            dict(type='PackClsInputs'),
        ],
    )
)
val_dataloader = dict(dataset=dict(pipeline=[dict(type='ResizeShortSide', size=64), dict(type='PackClsInputs')]))
test_dataloader = val_dataloader
train_cfg = dict(max_epochs=4)
# the tools add the hooks that every run needs
custom_hooks = [
    dict(type='eff_plugins.ChannelsLastHook'),
    dict(
        type='eff_plugins.BudgetHook',
        budget=0.5,
        losses=dict(hinge=2.0),
        temperature=dict(start=1.0, end=1.0, form='constant'),
    ),
]
