# Embedded data: clips of one moving digit over a photograph, 96x96; the eight classes are motions, so that one frame says
# nothing and mirroring is no augmentation.
train_pipeline = [
    dict(type='eff_plugins.LoadClip'),
    dict(type='SampleFrames', clip_len=1, num_clips=8),
    dict(type='ArrayDecode'),
    dict(type='ColorJitter', brightness=0.3, contrast=0.3, saturation=0.3, hue=0.1),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='PackActionInputs'),
]
test_pipeline = [
    dict(type='eff_plugins.LoadClip'),
    dict(type='SampleFrames', clip_len=1, num_clips=8, test_mode=True),
    dict(type='ArrayDecode'),
    dict(type='FormatShape', input_format='NCHW'),
    dict(type='PackActionInputs'),
]
train_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='eff_plugins.DigitMotionDataset', split='train', pipeline=train_pipeline),
)
val_dataloader = dict(
    batch_size=16,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='eff_plugins.DigitMotionDataset', split='val', test_mode=True, pipeline=test_pipeline),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='AccMetric', metric_options=dict(top_k_accuracy=dict(topk=(1,))))
test_evaluator = val_evaluator
