# Digits of 16 to 128 pixels over photographs, those of one picture within a factor of two; as they are, unresized.
_base_ = './digits_det.py'
generator = dict(digit_size=(16, 128), digit_spread=2.0)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PhotoMetricDistortion'),
    dict(type='PackDetInputs'),
]
train_dataloader = dict(dataset=dict(generator=generator, pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(generator=generator))
test_dataloader = val_dataloader
