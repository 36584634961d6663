# CIFAR-10 at its own 32 pixels. 3600 pictures train; the 400 behind them are for calibration.
_base_ = './cifar10.py'
train_dataloader = dict(
    dataset=dict(
        indices=3600,
        pipeline=[dict(type='PadCrop', padding=4), dict(type='FlipImage'), dict(type='PackClsInputs')],
    )
)
val_dataloader = dict(dataset=dict(pipeline=[dict(type='PackClsInputs')]))
test_dataloader = val_dataloader
